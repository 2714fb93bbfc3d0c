"""The name of a model: whether it is a folder or a name on the Hub, and which key or option gave it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from distill.errors import STEERING, ModelError
from distill.storage.checksums import LINEAR_SETTINGS


class AwayError(ModelError):
    """A model is neither on this disk nor on a hub that answers. See `named_by`."""

    def __init__(self, *problems: str):
        super().__init__(*problems, hint="a folder that holds the model, or a hub that answers (distill doctor)")


@contextlib.contextmanager
def named_by(key: str, hint: str | None = None) -> Iterator[None]:
    """Within the block, add to the error about a missing model which `key` of the recipe named it.

    `hint` is the cure, if it is not another value of that key.
    """
    try:
        yield
    except AwayError as error:
        another = f"a folder that holds the model (--set {key}=DIR), or a hub that answers (distill doctor)"
        raise ModelError(*(f"{key}: {problem}" for problem in error.problems), hint=hint or another) from error


def is_baseline(folder: Path) -> bool:
    """Say whether a folder holds a baseline (see linear.LinearClassifier) and no transformer."""
    return (folder / LINEAR_SETTINGS).is_file() and not (folder / "config.json").is_file()


def is_path(name: str) -> bool:
    """Say whether a model's name can only be a folder, because no name on the Hub looks like it."""
    return name.startswith((".", "/", "~")) or Path(name).is_absolute() or name.count("/") > 1


def _inner_models(folder: Path) -> str:
    """Return a half-sentence that names a model in a subfolder, such as one of several budgets; "" if there is none."""
    files = (file for depth in ("*", "*/*") for file in folder.glob(f"{depth}/config.json"))
    found = sorted(str(file.parent) for file in itertools.islice(files, 100))
    return f"; name a model in it, such as {found[0]}" if found else ""


def require_reachable(name: str) -> None:
    """Raise `ModelError` if `name` is neither a model folder nor possibly a name on the Hub.

    Without this check a mistyped path would be looked for on the Hub, and the error would be about the Hub. For a name
    on the Hub this also finds out whether a hub answers (see hub.ask_hub).
    """
    path = Path(name)
    if not name.strip():
        raise ModelError("wants a model's folder or its name on the Hub, got an empty name")
    if STEERING.search(name):
        raise ModelError(f"{name}: a model's name cannot hold control characters or bytes that are not UTF-8")
    if not path.is_dir() and (is_path(name) or path.is_symlink()):
        raise AwayError(f"{name}: no such folder")
    if is_baseline(path):
        raise ModelError(f"{name}: is a baseline, not a transformer")
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(f"{name}: not a model folder: it has no config.json{_inner_models(path)}")
    if not path.is_dir():
        from distill.storage.hub import ask_hub  # not at the top: it takes a while to import

        ask_hub()
