"""Teacher-student distillation for text classification.

`distill.load(folder)` returns a classifier. `distill.commands` has one function for each command.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.inference.classifier import Classifier, load

__all__ = ["Classifier", "load"]

# By default ONNX Runtime sends telemetry from threads of its own; it reads this variable when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


# transformers' Auto classes, and our module that adds the n-gram students to them.
_REGISTRATIONS = {
    "transformers.models.auto.configuration_auto": "distill.models.ngram_config",
    "transformers.models.auto.modeling_auto": "distill.models.ngrams",
}


class _Registration(importlib.abc.MetaPathFinder):
    """Imports our modules as soon as transformers' are imported, and not before.

    Importing transformers takes seconds, which `distill --help` has no use for.
    """

    def __init__(self) -> None:
        self.waiting = dict(_REGISTRATIONS)

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name not in self.waiting:
            return None
        ours = self.waiting.pop(name)  # so that the other finders are asked
        spec = importlib.util.find_spec(name)
        self.waiting[name] = ours
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: Any) -> None:
                run(module)
                self.waiting.pop(name, None)
                importlib.import_module(ours)

            spec.loader.exec_module = run_and_register
        return spec


for _theirs, _ours in _REGISTRATIONS.items():
    if _theirs in sys.modules:
        importlib.import_module(_ours)
sys.meta_path.insert(0, _Registration())


def __getattr__(name: str) -> Any:
    """Import the classifier on first use, because torch would make `distill --help` take seconds."""
    if name in __all__:
        from distill.inference import classifier

        return getattr(classifier, name)
    raise AttributeError(f"module 'distill' has no attribute {name!r}")
