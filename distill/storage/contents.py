"""Find what a folder holds: models, searches, a recipe, a manifest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.errors import FolderError
from distill.recipe.file import load_data
from distill.recipe.schema import BUDGETS
from distill.storage.cascades import is_cascade, read_cascade
from distill.storage.checksums import CASCADE, LINEAR_SETTINGS
from distill.storage.run_folder import RunFolder, SweepFolder

# The name of a folder that a list of budgets makes (see recipe.budgets).
OF_BUDGET = re.compile(rf"({'|'.join(BUDGETS)})-(\d+(?:\.\d+)?(?:e[+-]\d+)?)(-control)?")


def manifest_of(model: str) -> dict[str, Any] | None:
    """Return the manifest of a model that distill trained; None for any other model, or if the manifest is damaged."""
    folder = RunFolder(Path(model))
    try:
        return folder.read_manifest() if folder.is_finished else None
    except FolderError:  # the code that loads a teacher checks its files and reports the damage
        return None


def find_recipe(folders: Sequence[Path]) -> Path:
    """Return the first recipe.yaml found in model folders, or in the run folder that an export belongs to.

    That of a cascade is its last classifier's, from which its promise comes too.
    """
    for model in (model for folder in folders for model in models_in(folder)):
        models = read_cascade(model).models[::-1] if is_cascade(model) else [model]
        for folder in (place for one in models for place in (one, one.parent.parent)):
            if RunFolder(folder).recipe.is_file():
                return RunFolder(folder).recipe
    raise FolderError(
        f"{', '.join(map(str, folders))}: no recipe.yaml there, so the data is unknown", hint="--recipe RECIPE"
    )


def text_columns_of(model: Path | str) -> tuple[str, ...]:
    """Return the column that held a model's training texts, two for pairs; "text" if its run folder is not known.

    The texts of a cascade are those of its last classifier that has one.
    """
    folder = Path(model)
    models = read_cascade(folder).models[::-1] if is_cascade(folder) else [folder]
    run = next(filter(None, map(run_of, models)), None)
    return load_data(run.recipe).text_columns if run else ("text",)


def run_of(model: Path) -> RunFolder | None:
    """Return the run folder of a model; None if it is not known.

    It is the model's own folder. For an export or an export/ folder, it is the folder that holds export/.
    """
    own = model.absolute()
    exports = [folder for folder in (own, own.parent) if folder == RunFolder(folder.parent).export]
    runs = (RunFolder(own), *(RunFolder(folder.parent) for folder in exports))
    return next((run for run in runs if run.recipe.is_file()), None)


def models_in(folder: Path) -> list[Path]:
    """Return the folder itself if it is a model, else the models in it; nothing for a search.

    Those are the models of a `distill run`, or of a `distill student` with several budgets. Raises `FolderError` if
    there is no model.
    """
    if SweepFolder(folder).results.is_file():
        return []
    if _is_model(folder):
        return [folder]
    inner = [
        model
        for role in ("baseline", "teacher", "student", "control")
        for model in ([folder / role] if _is_model(folder / role) else models_of_budgets(folder / role))
    ]
    inner += models_of_budgets(folder)
    if not inner:
        problem = "no model there (no config.json)" if folder.is_dir() else "no such folder"
        raise FolderError(f"{folder}: {problem}")
    return inner


def models_of_budgets(folder: Path) -> list[Path]:
    """Return the models of a list of budgets in a folder (see recipe.budgets), by rising budget; controls come last."""
    found = [
        (match, path) for path in folder.glob("*") if (match := OF_BUDGET.fullmatch(path.name)) and _is_model(path)
    ]
    return [path for _, path in sorted(found, key=lambda one: (one[0][3] or "", one[0][1], float(one[0][2])))]


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", LINEAR_SETTINGS, CASCADE))


def sweeps_in(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the trials of each search in `folder` or its subfolder sweep/, with the folder (see search.run_search)."""
    for path in (folder, folder / "sweep"):
        if SweepFolder(path).results.is_file():
            yield {"folder": str(path), **SweepFolder(path).read_results()}
