"""The packages that distill needs: installed, of versions that fit, and none that spoils another. Imports none."""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from packaging.requirements import Requirement

from distill.errors import GPU_EXTRA, TRAIN_EXTRA

SWEEP_EXTRA = "pip install optuna"
# The same module under another name.
INSTEAD = {"onnxruntime": ("onnxruntime-gpu",)}
# Distributions that spoil each other, and how to mend it.
CLASHES = [
    (
        ("onnxruntime", "onnxruntime-gpu"),
        "both are the same module, and the one that pip installed last runs",
        GPU_EXTRA,
    ),
    (
        ("optimum-onnx", "transformers"),
        "optimum-onnx asks for transformers below 5, distill for 5: one of the two is broken by the other",
        "keep optimum-onnx in an environment of its own; the exported folders load there",
    ),
]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: fine, worth knowing, or a fault, with what to do about it."""

    subject: str
    state: Literal["ok", "note", "fault"]
    found: str
    cure: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as an object."""
        return asdict(self)


def examine_packages() -> Iterator[Finding]:
    """Yield Python's version and each package that distill requires, then those that do not go together."""
    yield Finding("python", "ok", sys.version.split()[0])
    try:
        requirements = importlib.metadata.requires("distill") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            "distill", "fault", "run from its source, not installed: versions are not known", "pip install -e ."
        )
        return
    needed = list(map(Requirement, requirements))
    for_all = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    training = [one for one in needed if one not in for_all and one.marker.evaluate({"extra": "train"})]
    if not any(installed(one.name) for one in training if one.name in ("torch", "transformers")):
        yield Finding("training", "note", "not installed; only exports can be used here", TRAIN_EXTRA)
        training = []
    for requirement in [*for_all, *training]:
        wanted = f'pip install "{requirement.name}{requirement.specifier}"'
        there = installed(requirement.name)
        if there is None:
            yield Finding(requirement.name, "fault", "not installed", wanted)
            continue
        _, version = there
        if requirement.specifier.contains(version, prereleases=True):
            yield Finding(requirement.name, "ok", version)
        else:
            yield Finding(requirement.name, "fault", f"{version}, tested with {requirement.specifier}", wanted)
    names = {str(item.metadata["Name"]).lower().replace("_", "-") for item in importlib.metadata.distributions()}
    for clash, problem, cure in CLASHES:
        if names.issuperset(clash):
            yield Finding(" and ".join(clash), "fault", problem, cure)


def installed(name: str) -> tuple[str, str] | None:
    """Return name and version of the package `name`, or of one that is the same module; None if neither is there."""
    for one in (name, *INSTEAD.get(name, ())):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return one, importlib.metadata.version(one)
    return None
