"""The time and the library versions that manifests and reports record."""

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
