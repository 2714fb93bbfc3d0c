"""The time and the library versions that manifests and reports record."""

from __future__ import annotations

import importlib.metadata
import platform
from datetime import UTC, datetime

from distill.machine.packages import installed

TRAINED_WITH = ("python", "distill", "torch", "transformers", "datasets", "accelerate")  # what weights depend on
DISTRIBUTIONS = ("distill", "torch", "transformers", "datasets", "accelerate", "onnxruntime", "onnx", "optimum")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on.

    A machine with a GPU may have onnxruntime-gpu in place of onnxruntime, and the version is under that name. Raises
    `importlib.metadata.PackageNotFoundError` if one is missing.
    """
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        there = installed(name)
        if there is None:
            raise importlib.metadata.PackageNotFoundError(name)
        found[there[0]] = there[1]
    return found


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
