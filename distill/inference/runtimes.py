"""Which of the runtimes ONNX Runtime and OpenVINO are installed, and on which devices they run."""

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
    """Return the module openvino; raises `DeviceError` if the extra is not installed.

    OpenVINO and NNCF send usage data to their makers through the package openvino_telemetry, so that is made missing.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]
    try:
        import openvino
    except ImportError as error:
        raise DeviceError("OpenVINO is not installed", hint=OPENVINO_EXTRA) from error
    # OpenVINO sets up numpy at the first tensor and releases the GIL meanwhile. If two threads make a first tensor at
    # once, they can deadlock: one waits for the GIL, the other holds it and waits for the first. So one is made here.
    with _FIRST_TENSOR:
        openvino.Tensor(np.zeros(1, np.float32), shared_memory=True)
    return openvino


def can_run(format: str, device: Device) -> bool:
    """Say whether the runtime of `format` for `device` is installed."""
    if format.startswith("openvino-"):
        return importlib.util.find_spec("openvino") is not None
    return device == "cpu" or not format.startswith("onnx-") or onnx_runs_on_cuda()


def onnx_runs_on_cuda() -> bool:
    """Say whether the installed ONNX Runtime has a CUDA provider; the package onnxruntime has none."""
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def onnx_providers(device: Device) -> list[str]:
    """Return ONNX Runtime's providers for `device`, best first; for CUDA, also load its libraries."""
    if device == "cpu":
        return ["CPUExecutionProvider"]
    onnxruntime.preload_dlls()  # the CUDA libraries that torch installed
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]
