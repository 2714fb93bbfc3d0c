"""The recipes that come with distill: by name, and as copies to edit."""

from __future__ import annotations

from pathlib import Path

from distill.errors import FolderError, RecipeError

FOLDER = Path(__file__).parent.parent / "recipes"  # in a checkout, links into its own recipes/


def shipped() -> dict[str, Path]:
    """Return the file of each recipe that comes with distill, under its name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"), key=lambda path: path.stem)}


def recipe_file(recipe: Path | str) -> Path:
    """Return the file that `recipe` means: one that comes with distill, if it is the name of one and of no file."""
    found = shipped().get(str(recipe))
    return found if found and not Path(recipe).is_file() else Path(recipe)


def about(file: Path) -> str:
    """Return the comment that a recipe begins with."""
    return file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def copy_recipe(name: str, output: Path | None = None) -> Path:
    """Copy a recipe into the folder or to the .yaml file `output` (default: the working directory); return the copy."""
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
