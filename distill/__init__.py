"""Teacher-student distillation for text classification.

`distill.load(folder)` returns a classifier; what each command does is a function in `distill.commands`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.inference.classifier import Classifier, load

__all__ = ["Classifier", "load"]

# ONNX Runtime reports to its makers by default, from threads of its own, and asks when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    """Load on first use: importing distill must not import torch, or `distill --help` takes seconds."""
    if name in __all__:
        from distill.inference import classifier

        return getattr(classifier, name)
    raise AttributeError(f"module 'distill' has no attribute {name!r}")
