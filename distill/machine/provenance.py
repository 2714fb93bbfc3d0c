"""The time, library versions and processor that manifests and reports record."""

from __future__ import annotations

import importlib.metadata
import platform
from datetime import UTC, datetime

TRAINED_WITH = ("python", "distill", "torch", "transformers", "datasets", "accelerate")  # what weights depend on
DISTRIBUTIONS = ("distill", "torch", "transformers", "datasets", "accelerate", "onnxruntime", "onnx", "optimum")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in DISTRIBUTIONS}


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def cpu_name() -> str:
    """Return the processor's name."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
