"""Write and read the folder of a cascade: which classifiers, in which order, and how sure each has to be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from distill.errors import FolderError
from distill.storage.checksums import ANSWERING, CASCADE, check_whole, fingerprint, seal
from distill.storage.files import read_json, write_json
from distill.storage.records import Number, checked


class Step(TypedDict):
    """A classifier of a cascade: its folder, relative to the cascade's, and what its files were when it was made.

    It answers a text if its likeliest label has a probability of `at_least`; the last one (None) answers every text.
    """

    model: str
    fingerprint: str
    at_least: Number | None


class _Cascade(TypedDict):
    steps: list[Step]
    promise: dict[str, Any]


def is_cascade(folder: Path) -> bool:
    """Say whether a folder holds a cascade."""
    return (folder / CASCADE).is_file()


def write_cascade(
    folder: Path, models: Sequence[Path], thresholds: Sequence[float], promise: dict[str, Any]
) -> dict[str, Any]:
    """Write the cascade of `models` into `folder` and return what was written; `promise` is what it keeps."""
    folder.mkdir(parents=True, exist_ok=True)
    steps: list[Step] = [
        {
            "model": Path(os.path.relpath(model.resolve(), folder.resolve())).as_posix(),
            "fingerprint": fingerprint(model, ANSWERING),
            "at_least": threshold,
        }
        for model, threshold in zip(models, [*thresholds, None], strict=True)
    ]
    content: dict[str, Any] = {"steps": steps, "promise": promise}
    write_json(folder / CASCADE, content)
    seal(folder, [CASCADE])
    return content


def read_cascade(folder: Path) -> tuple[list[Path], list[float], dict[str, Any]]:
    """Return the models of a cascade, the threshold of each but the last, and its promise.

    Raises `FolderError` if cascade.json is damaged, or if a model is missing or has changed since.
    """
    check_whole(folder, (CASCADE,))
    place = folder / CASCADE
    content = checked(_Cascade, read_json(place), str(place))
    steps: list[Step] = content["steps"]
    if len(steps) < 2 or [step["at_least"] is None for step in steps] != [False] * (len(steps) - 1) + [True]:
        raise FolderError(f"{place}: wants two steps or more, and a threshold for each but the last")
    models = []
    for step in steps:
        model = folder / step["model"]
        again = "distill cascade makes it again"
        if not model.is_dir():
            raise FolderError(f"{folder}: its classifier {model} is not there", hint=f"restore it, or {again}")
        if fingerprint(model, ANSWERING) != step["fingerprint"]:
            raise FolderError(f"{folder}: {model} has changed since, so the thresholds no longer fit it", hint=again)
        models.append(Path(os.path.normpath(model)))
    return models, [float(step["at_least"]) for step in steps if step["at_least"] is not None], content["promise"]
