"""The device to run on, its training precision, and its memory and utilization."""

from __future__ import annotations

import functools
import logging
import platform
import statistics
import threading
from collections.abc import Mapping
from typing import Any, Literal

import torch

from distill.errors import DeviceError, RecipeError
from distill.machine.cpu import cores, cpu_name
from distill.machine.timing import time_in_turn

log = logging.getLogger("distill")

Device = Literal["cpu", "cuda"]
TIMED_AT_ONCE, MOST_TIMINGS = 10, 6  # calls of each precision, and the maximum number of repetitions
QUIET = 1.15  # median over minimum of the timings; an otherwise idle machine stays below it
WORTHWHILE = 1.2  # times fp32's rate; below this, bf16 is not worth its rounding
GPU_SAMPLE_SECONDS = 1.0


def resolve_device(wanted: str) -> Device:
    """Return "cuda" if `wanted` is "cuda", or if it is "auto" and there is a GPU; otherwise "cpu".

    Raises `DeviceError` if `wanted` is "cuda" and torch sees no GPU.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise DeviceError("--device cuda: torch sees no CUDA device here", hint="leave --device out, or use cpu")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def has_fast_bf16(device: Device) -> bool:
    """Say whether bf16 is faster than fp32: on GPUs since Ampere, and on CPUs with a high `bf16_rate`."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    return bf16_rate() >= WORTHWHILE


@functools.cache
def bf16_rate() -> float:
    """Return how many times as fast this CPU multiplies in bf16 as in fp32; 0 if it lacks the instructions.

    AVX512-BF16 alone does not make a CPU fast: if a hypervisor hides AMX, a Xeon multiplies bf16 at 0.6 times its fp32
    rate, an EPYC with the same flag at twice. The fastest timings are compared, because other work on the machine only
    adds time. If the timings scatter, there is other work, and more are taken.
    """
    capabilities = torch.cpu.get_capabilities()
    if not (capabilities.get("avx512_bf16") or capabilities.get("amx_tile")):
        return 0.0
    texts, weights = torch.ones(512, 768), torch.ones(3072, 768)  # a feed-forward product of BERT-base
    calls = {
        dtype: functools.partial(torch.nn.functional.linear, texts.to(dtype), weights.to(dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    latencies: dict[torch.dtype, list[float]] = {dtype: [] for dtype in calls}
    with torch.inference_mode():
        for _ in range(MOST_TIMINGS):
            for dtype, found in time_in_turn(calls, rounds=TIMED_AT_ONCE).items():
                latencies[dtype] += found
            if all(statistics.median(found) < QUIET * min(found) for found in latencies.values()):
                break
    return min(latencies[torch.float32]) / min(latencies[torch.bfloat16])


def training_precision(device: Device, training: dict[str, Any]) -> tuple[dict[str, bool], str]:
    """Return the TrainingArguments fields for mixed precision and the reason; fields in `training` take precedence.

    Weights and optimizer state always stay fp32 (autocast).
    """
    if "bf16" in training or "fp16" in training:
        chosen = next((name for name in ("bf16", "fp16") if training.get(name)), "fp32")
        return {}, f"{chosen}, as the recipe says"
    if device == "cuda":
        if has_fast_bf16(device):
            return {"bf16": True}, "bf16: this GPU multiplies it in hardware"
        return {"fp16": True}, "fp16 with loss scaling: this GPU has no bf16 in hardware"
    rate = bf16_rate()
    if rate == 0:
        return {"bf16": False}, "fp32: this CPU has neither AVX512-BF16 nor AMX"
    if rate < WORTHWHILE:
        reason = f"fp32: this CPU multiplies in bf16 at {rate:.2f} times the rate of fp32, less than {WORTHWHILE}"
        return {"bf16": False}, reason
    return {"bf16": True}, f"bf16: this CPU multiplies in it at {rate:.1f} times the rate of fp32"


def refuse_fp16(training: Mapping[str, Any], device: Device, stage: str) -> None:
    """Raise `RecipeError` if the `training` section of `stage` asks for fp16 and the device is a CPU.

    torch's fp16 kernels for CPUs are slow: one training took 33 CPU seconds in fp16 and 9 in fp32.
    """
    if device == "cpu" and training.get("fp16"):
        raise RecipeError(
            f"{stage}.training.fp16: true, but a CPU trains in fp16 at a fraction of its speed in fp32 (33 CPU seconds "
            "against 9): leave it out, or --device cuda"
        )


def describe_hardware() -> dict[str, Any]:
    """Return the processor, its cores and vector instructions, the GPUs and the system, for manifests and reports."""
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "system": f"{platform.system()} {platform.machine()}",
    }


def peak_memory_bytes(device: Device) -> int | None:
    """Return the peak memory in bytes, of torch on the GPU or of this process; None on Windows."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024  # Linux counts in KiB


class GpuWatch:
    """Sample by NVML, once a second while the block runs, how busy the GPU is and how much of its memory is used.

    If NVML cannot tell (a GPU of another maker, a slice of a GPU), the reason is logged and there are no figures.
    """

    def __init__(self, device: Device):
        self.busy: list[int] = []
        self.memory: list[int] = []
        self.done = threading.Event()
        self.thread: threading.Thread | None = None
        self.device = device

    def __enter__(self) -> GpuWatch:
        if self.device == "cuda":
            self.thread = threading.Thread(target=self._watch, daemon=True)
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        if self.thread:
            self.thread.join()

    def _watch(self) -> None:
        try:
            from pynvml import NVMLError
        except ImportError as error:
            log.warning("GPU utilization is not recorded: %s (pip install nvidia-ml-py)", error)
            return
        try:
            while not self.done.wait(GPU_SAMPLE_SECONDS):
                busy, memory = torch.cuda.utilization(), torch.cuda.device_memory_used()
                self.busy.append(busy)
                self.memory.append(memory)
        except (NVMLError, RuntimeError) as error:
            log.warning("GPU utilization is not recorded: %s", error)

    def figures(self) -> dict[str, float]:
        """Return gpu_utilisation, the share of time that the GPU was busy, and gpu_memory_bytes, the most memory used.

        That is the memory of all processes on the GPU; `peak_memory_bytes` counts only torch's in this process.
        """
        if not self.busy:
            return {}
        return {"gpu_utilisation": sum(self.busy) / len(self.busy) / 100, "gpu_memory_bytes": max(self.memory)}
