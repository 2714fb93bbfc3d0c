"""The processor: its name and the cores that this process may use."""

from __future__ import annotations

import os
import platform

# As Linux names them: x86's vectors and its products of int8 and bf16, then ARM's.
UNKNOWN = "(unknown instructions)"
DECISIVE = {
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16",
    "sve",
}  # fmt: skip


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_kind() -> str:
    """Return what decides how this processor computes: its name, and which instructions for int8 and bf16 it has."""
    flags: set[str] = set()
    try:
        with open("/proc/cpuinfo") as file:
            flags = next(
                (set(line.split(":", 1)[1].split()) for line in file if line.startswith(("flags", "Features"))), flags
            )
    except OSError:
        pass  # another system than Linux, where the name has to do
    return " ".join([cpu_name(), platform.machine(), *(sorted(flags & DECISIVE) if flags else [UNKNOWN])])


def cpu_name() -> str:
    """Return the processor's name."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
