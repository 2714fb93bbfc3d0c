"""Teacher-student distillation for text classification.

`distill.load(folder)` returns a classifier. `distill.commands` has one function for each command.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.inference.classifier import Classifier, load

__all__ = ["Classifier", "load"]

# By default ONNX Runtime sends telemetry from threads of its own; it reads this variable when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    """Import the classifier on first use, because torch would make `distill --help` take seconds."""
    if name in __all__:
        from distill.inference import classifier

        return getattr(classifier, name)
    raise AttributeError(f"module 'distill' has no attribute {name!r}")
