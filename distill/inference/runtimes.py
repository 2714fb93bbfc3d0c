"""Which of the runtimes ONNX Runtime and OpenVINO are installed, and on which devices they run."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import io
import sys
import threading
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnxruntime

from distill.errors import DeviceError
from distill.machine.timing import time_in_turn

if TYPE_CHECKING:
    from distill.machine.devices import Device

OPENVINO_EXTRA = "pip install openvino nncf"
FOR_CPUS = ("onnx-int8", "openvino-bf16", "openvino-int8")  # formats that run on no other device
TIMED, WORTHWHILE = 5, 1.2  # calls; times fp32's rate, below which bf16 is not worth its rounding
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
    if format.startswith("onnx-"):
        return device == "cpu" or onnx_runs_on_cuda()
    if importlib.util.find_spec(format.split("-")[0]) is None:  # torch, openvino
        return False
    if device == "cpu" or format.startswith("openvino-"):
        return True
    import torch  # not at the top: exports run without it

    return torch.cuda.is_available()


@functools.cache
def openvino_precision() -> Literal["bf16", "f32"]:
    """Return the faster of two precisions for OpenVINO's layers that are not int8, from a measurement.

    A CPU with bf16 instructions is not always faster with them (see precision.bf16_rate), and one without emulates bf16
    some forty times slower.
    """
    openvino = import_openvino()
    core, ops = openvino.Core(), openvino.opset13
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return "f32"
    texts = ops.parameter([512, 768], np.float32)  # a feed-forward product of BERT-base
    model = openvino.Model([ops.matmul(texts, ops.constant(np.ones((3072, 768), np.float32)), False, True)], [texts])
    ones = np.ones((512, 768), np.float32)
    calls = {}
    for precision in ("f32", "bf16"):
        request = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision}).create_infer_request()
        calls[precision] = functools.partial(request.infer, [ones])
    found = {name: min(latencies) for name, latencies in time_in_turn(calls, rounds=TIMED).items()}
    return "bf16" if found["f32"] > WORTHWHILE * found["bf16"] else "f32"


def gpu_is_here() -> bool:
    """Say whether NVIDIA's driver sees a GPU; torch and ONNX Runtime may still lack the libraries to use it."""
    try:
        driver, count = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"), ctypes.c_int()
    except OSError:
        return False
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def gpu_of(wanted: str) -> Device:
    """Return "cuda" if `wanted` is "cuda", or if it is "auto" and there is a GPU; otherwise "cpu".

    Raises `DeviceError` if `wanted` is "cuda" and there is no GPU.
    """
    if wanted == "cuda" and not gpu_is_here():
        raise DeviceError("--device cuda: NVIDIA's driver sees no GPU here", hint="leave --device out, or use cpu")
    return "cuda" if wanted != "cpu" and gpu_is_here() else "cpu"


def onnx_runs_on_cuda() -> bool:
    """Say whether the installed ONNX Runtime has a CUDA provider; the package onnxruntime has none."""
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def onnx_providers(device: Device) -> list[str]:
    """Return ONNX Runtime's providers for `device`, best first; for CUDA, also load its libraries."""
    if device == "cpu":
        return ["CPUExecutionProvider"]
    load_cuda_libraries()
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]


@functools.cache
def load_cuda_libraries() -> str | None:
    """Load the CUDA libraries that torch or the extra `gpu` installed; return why the first that fails cannot load.

    ONNX Runtime prints that to stdout, where only results may go.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        onnxruntime.preload_dlls()
    return next(iter(said.getvalue().strip().splitlines()), None)
