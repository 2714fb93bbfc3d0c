"""Write and read the folder of a cascade: which classifiers, in which order, and how sure each has to be."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from distill.errors import FolderError
from distill.storage.checksums import ANSWERING, CASCADE, SEAL, check_whole, fingerprint, seal
from distill.storage.files import atomic_files, read_json, write_json
from distill.storage.lock import is_ours
from distill.storage.records import checked

MOST_STEPS = 8
Share = Annotated[float, Field(ge=0, le=1)]


class _Step(TypedDict):
    """A classifier: its folder, relative to the cascade's, and what its files were when the cascade was made.

    It answers a text if its likeliest label has a probability of `at_least`; the last one (None) answers every text.
    """

    model: str
    fingerprint: str
    at_least: Share | None


class _Promise(TypedDict):
    agree: Share | None
    accuracy_drop: Share | None
    confidence: Share
    texts: int
    ordering_texts: NotRequired[int]


class _Cascade(TypedDict):
    label_names: Annotated[list[str], Field(min_length=2)]
    label_map: NotRequired[dict[str, str]]
    steps: list[_Step]
    promise: _Promise


@dataclass(frozen=True)
class CascadeFolder:
    """What a cascade's folder says: its classes, its models, the threshold of each but the last, and its promise.

    `label_map` says what a model may call the classes instead.
    """

    label_names: tuple[str, ...]
    label_map: dict[str, str]
    models: list[Path]
    thresholds: list[float]
    promise: dict[str, Any]


def is_cascade(folder: Path) -> bool:
    """Say whether a folder holds a cascade."""
    return (folder / CASCADE).is_file()


def check_place(folder: Path) -> None:
    """Raise `FolderError` if `folder` holds anything but a cascade, which writing one would damage."""
    others = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    others = [name for name in others if name not in (CASCADE, SEAL) and not is_ours(name)]
    if others:
        raise FolderError(f"{folder}: holds other files than a cascade's ({min(others)})", hint="--output DIR")


def write_cascade(
    folder: Path,
    label_names: Sequence[str],
    label_map: Mapping[str, str],
    models: Sequence[Path],
    fingerprints: Sequence[str],
    thresholds: Sequence[float],
    promise: dict[str, Any],
) -> dict[str, Any]:
    """Write the cascade of `models` into `folder` and return what was written; `promise` is what it keeps.

    Raises `FolderError` if a model is no longer what its fingerprint says.
    """
    for model, before in zip(models, fingerprints, strict=True):
        if fingerprint(model, ANSWERING) != before:
            raise FolderError(f"{model}: has changed while the cascade was made", hint="make it again")
    steps = [
        {
            "model": Path(os.path.relpath(model.resolve(), folder.resolve())).as_posix(),
            "fingerprint": before,
            "at_least": threshold,
        }
        for model, before, threshold in zip(models, fingerprints, [*thresholds, None], strict=True)
    ]
    content: dict[str, Any] = {
        "label_names": list(label_names),
        "label_map": dict(label_map),
        "steps": steps,
        "promise": promise,
    }
    with atomic_files(folder) as made:
        write_json(made / CASCADE, content)
        seal(made, [CASCADE])
    return content


def read_cascade(folder: Path) -> CascadeFolder:
    """Return what a cascade's folder says.

    Raises `FolderError` if cascade.json is damaged, or if a model is missing, has changed since or is a cascade itself.
    """
    check_whole(folder, (CASCADE,))
    place = folder / CASCADE
    content = checked(_Cascade, read_json(place), str(place))
    steps: list[_Step] = content["steps"]
    open_ended = [step["at_least"] is None for step in steps]
    if not 2 <= len(steps) <= MOST_STEPS or open_ended != [False] * (len(steps) - 1) + [True]:
        raise FolderError(f"{place}: wants two to {MOST_STEPS} steps, and a threshold for each but the last")
    if (content["promise"]["agree"] is None) == (content["promise"]["accuracy_drop"] is None):
        raise FolderError(f"{place}: promise: wants either agree or accuracy_drop")
    models = []
    for step in steps:
        again = "distill cascade makes it again"
        if PurePosixPath(step["model"]).is_absolute() or Path(step["model"]).is_absolute():
            raise FolderError(f"{place}: {step['model']}: wants a path relative to the cascade's folder")
        try:
            model = (folder.resolve() / step["model"]).resolve()  # a link in `folder` must not lead elsewhere later
            is_there = model.is_dir()
        except (OSError, ValueError) as error:  # no path at all: null bytes, half a character, too many of them
            raise FolderError(f"{place}: {step['model'][:80]!r}: is no path of a folder", hint=again) from error
        if not is_there:
            raise FolderError(f"{folder}: its classifier {model} is not there", hint=f"restore it, or {again}")
        if is_cascade(model):
            raise FolderError(f"{folder}: its classifier {model} is itself a cascade")
        if fingerprint(model, ANSWERING) != step["fingerprint"]:
            raise FolderError(f"{folder}: {model} has changed since, so the thresholds no longer fit it", hint=again)
        models.append(model)
    thresholds = [float(step["at_least"]) for step in steps if step["at_least"] is not None]
    label_map = content.get("label_map", {})
    return CascadeFolder(tuple(content["label_names"]), label_map, models, thresholds, content["promise"])
