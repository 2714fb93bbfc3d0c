"""The recipes that come with distill: finding one by its name, and copying one to edit."""

from __future__ import annotations

from pathlib import Path

from distill.errors import FolderError, RecipeError

FOLDER = Path(__file__).parent.parent / "recipes"  # in a checkout these are links into recipes/


def shipped() -> dict[str, Path]:
    """Return the file of each recipe that comes with distill, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"), key=lambda path: path.stem)}


def recipe_file(recipe: Path | str) -> Path:
    """Return the file that `recipe` means; a file of that name wins over a recipe that comes with distill."""
    found = shipped().get(str(recipe))
    return found if found and not Path(recipe).is_file() else Path(recipe)


def about(file: Path) -> str:
    """Return the first line of a recipe, which describes it."""
    return file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def copy_recipe(name: str, output: Path | None = None) -> Path:
    """Copy a recipe to `output`, a folder or a .yaml file (default: the working directory); return the copy's path."""
    if name not in shipped():
        raise RecipeError(f"{name}: no such recipe comes with distill; known: {', '.join(shipped())}")
    target = output or Path()
    if target.suffix not in (".yaml", ".yml"):
        target = target / f"{name}.yaml"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "xb") as file:
            file.write(shipped()[name].read_bytes())
    except OSError as error:
        raise FolderError(f"{target}: not written: {error.strerror}", hint="--output PATH") from None
    return target
