"""The device to run on and the precision that it trains in."""

from __future__ import annotations

import os
import platform
from typing import Any, Literal

import torch

from distill.errors import DeviceError

Device = Literal["cpu", "cuda"]


def resolve_device(wanted: str) -> Device:
    """Return "cuda" where `wanted` is "cuda", or "auto" and a GPU is there, else "cpu".

    Raises `DeviceError` where CUDA is asked for and torch sees none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise DeviceError("--device cuda: torch sees no CUDA device here", hint="leave --device out, or use cpu")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def has_fast_bf16(device: Device) -> bool:
    """Say whether bf16 products run in hardware: GPUs from Ampere on, CPUs with AVX512-BF16 or AMX."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_tile"))


def training_precision(device: Device, training: dict[str, Any]) -> tuple[dict[str, bool], str]:
    """Return the TrainingArguments fields for mixed precision and the reason; `training` itself has the last word.

    Weights and optimiser state stay fp32 in every case (autocast).
    """
    if "bf16" in training or "fp16" in training:
        chosen = next((name for name in ("bf16", "fp16") if training.get(name)), "fp32")
        return {}, f"{chosen}, as the recipe says"
    if has_fast_bf16(device):
        return {"bf16": True}, f"bf16: this {device.upper()} multiplies it in hardware"
    if device == "cuda":
        return {"fp16": True}, "fp16 with loss scaling: this GPU is older than bf16"
    return {}, "fp32: this CPU has neither AVX512-BF16 nor AMX"


def describe_hardware() -> dict[str, Any]:
    """Return the processor, its cores and capability, and the GPUs with their drivers, for manifests and reports."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": gpus,
        "system": f"{platform.system()} {platform.machine()}",
    }


def peak_memory_bytes(device: Device) -> int | None:
    """Return the most memory held so far, in bytes, of the GPU or of this process; None where the system hides it."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024  # Linux counts in KiB


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
