"""What a folder holds: models, searches, a recipe, a manifest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.errors import FolderError
from distill.recipe.file import load_recipe
from distill.storage.run_folder import RunFolder, SweepFolder


def manifest_of(model: str) -> dict[str, Any] | None:
    """Return the manifest of a model that distill trained, None of any other, whatever a file of that name holds."""
    folder = RunFolder(Path(model))
    try:
        found = folder.read_manifest() if folder.is_finished else None
    except FolderError:  # what must be whole of a teacher is looked at where it is read
        return None
    return found if isinstance(found, dict) and "role" in found else None


def find_recipe(folders: Sequence[Path]) -> Path:
    """Return the first recipe.yaml found in model folders, or in the run folder that an export lies in."""
    for model in (model for folder in folders for model in models_in(folder)):
        for folder in (model, model.parent.parent):
            if RunFolder(folder).recipe.is_file():
                return RunFolder(folder).recipe
    raise FolderError(
        f"{', '.join(map(str, folders))}: no recipe.yaml there, so the data is not known", hint="--recipe RECIPE"
    )


def text_column_of(model: Path | str) -> str:
    """Return the column that a model's training texts stood in, if its run folder is known, else "text".

    That is the model's own folder, or for an export, or a folder of them, the run folder whose export/ it lies in.
    """
    own = Path(model).absolute()
    exports = [folder for folder in (own, own.parent) if folder == RunFolder(folder.parent).export]
    for run in (RunFolder(own), *(RunFolder(folder.parent) for folder in exports)):
        if run.recipe.is_file():
            return load_recipe(run.recipe).data.text_column
    return "text"


def models_in(folder: Path) -> list[Path]:
    """Return the folder itself, or the stages of a `run` in it; of a search, which has none, nothing.

    Raises `FolderError` where there is no model.
    """
    if SweepFolder(folder).results.is_file():
        return []
    if (folder / "config.json").is_file():
        return [folder]
    inner = [folder / name for name in ("teacher", "student", "control") if (folder / name / "config.json").is_file()]
    if not inner:
        raise FolderError(
            f"{folder}: no model there (no config.json)" if folder.is_dir() else f"{folder}: no such folder"
        )
    return inner


def sweeps_in(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the trials of a search and its folder, if there is one in `folder` (see search.run_search)."""
    for path in (folder, folder / "sweep"):
        if SweepFolder(path).results.is_file():
            yield {"folder": str(path), **SweepFolder(path).read_results()}
