"""Which runtimes are installed here, and on which devices they run: torch, ONNX Runtime and OpenVINO."""

from __future__ import annotations

import importlib.util
import sys
import threading
from typing import Any

import numpy as np
import onnxruntime

from distill.errors import DeviceError
from distill.machine.devices import Device

OPENVINO_EXTRA = "pip install openvino nncf"
FOR_CPUS = ("onnx-int8", "openvino-bf16", "openvino-int8")  # formats that run on no other device
_FIRST_TENSOR = threading.Lock()


def import_openvino() -> Any:
    """Return the module openvino; raises `DeviceError` where the extra is not installed.

    It would tell its makers that it was imported, and NNCF what it is used for: both do without the package for that.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]
    try:
        import openvino
    except ImportError as error:
        raise DeviceError("OpenVINO is not installed", hint=OPENVINO_EXTRA) from error
    # Its bindings set up numpy at the first tensor, giving up Python's lock meanwhile: where two threads are there at
    # once, one waits for the lock and the other, which has it, for the first. A tensor made here leaves nothing to do.
    with _FIRST_TENSOR:
        openvino.Tensor(np.zeros(1, np.float32), shared_memory=True)
    return openvino


def can_run(format: str, device: Device) -> bool:
    """Say whether what runs `format` on `device` is installed."""
    if format.startswith("openvino-"):
        return importlib.util.find_spec("openvino") is not None
    return device == "cpu" or not format.startswith("onnx-") or onnx_runs_on_cuda()


def onnx_runs_on_cuda() -> bool:
    """Say whether the installed ONNX Runtime has a CUDA provider; the one for CPUs, which pip installs, has none."""
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def onnx_providers(device: Device) -> list[str]:
    """Return what ONNX Runtime runs on for `device`, the first choice first; on CUDA, with its libraries loaded."""
    if device == "cpu":
        return ["CPUExecutionProvider"]
    onnxruntime.preload_dlls()  # those that torch brought
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]
