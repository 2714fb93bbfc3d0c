"""Rules for the code base: the order of the wings, no torch before it is needed, documentation that is true."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distill.recipe.shipped import shipped

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "distill"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.stat().st_size  # the __init__.py of a wing is empty
}


def test_the_init_of_a_wing_is_empty():
    assert [name for name in MODULES if name.endswith("__init__")] == ["distill.__init__"]


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)


LIGHT = (
    "cli", "errors", "machine.packages", "machine.progress", "machine.ranks", "machine.timing", "recipe.file",
    "recipe.schema", "recipe.shipped", "report.choice", "report.document", "report.page", "report.plots",
    "serving.server", "storage.checksums", "storage.files", "storage.run_folder",
)  # fmt: skip


def test_light_modules_import_neither_torch_nor_transformers():
    imported = "".join(f"import distill.{module}\n" for module in LIGHT)
    done = python(f"{imported}import sys; print('torch' in sys.modules, 'transformers' in sys.modules)")
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_a_wing_imports_only_from_wings_below_it_and_there_is_no_circle():
    """Checks the contracts in pyproject.toml; these also require that the order names every wing."""
    done = python("from importlinter.cli import lint_imports_command as run; run(['--no-cache'])")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("argument", "heavy"), [("--help", "pydantic"), ("recipes", "transformers")])
def test_help_and_the_list_of_recipes_answer_without_torch(argument, heavy):
    done = python(
        f"import sys; sys.argv = ['distill', '{argument}']\n"
        "import distill.cli\n"
        "try: distill.cli.main()\n"
        f"except SystemExit as done: print(done.code, 'torch' in sys.modules, '{heavy}' in sys.modules)"
    )
    assert done.stdout.splitlines()[-1] == "0 False False", done.stderr


def test_no_private_name_of_another_module_is_used():
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("distill"):
                assert not [alias.name for alias in node.names if alias.name.startswith("_")], module


def test_the_readme_names_every_wing_and_no_other():
    readme = (ROOT / "README.md").read_text()
    named = re.findall(r"^ {2}(\w+)(/|\.py) ", readme, flags=re.MULTILINE)
    wings = {(path.parent.name, "/") for path in PACKAGE.glob("*/__init__.py")}
    alone = {(path.stem, ".py") for path in PACKAGE.glob("*.py")}
    assert set(named) == wings | alone | {("templates", "/"), ("recipes", "/")}


def test_the_readme_names_every_command_and_no_other():
    done = subprocess.run([sys.executable, "-m", "distill", "--help"], capture_output=True, text=True, cwd=ROOT)
    commands = set(re.findall(r"^ {2}(\w+) +[A-Z]", done.stdout.split("Commands:")[1], flags=re.MULTILINE))
    assert commands >= {"check", "inspect", "doctor", "teacher", "student", "export", "report", "run", "predict"}
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"^distill (\w+)", readme, flags=re.MULTILINE)) == commands


def test_every_recipe_says_how_to_run_it():
    recipes = sorted((ROOT / "recipes").glob("*.yaml"))
    assert {path.stem for path in recipes} == {"quickstart", "imdb", "yelp", "yelp-full"}
    for path in recipes:
        head = path.read_text().split("data:")[0]
        name = path.stem if path.stem in shipped() else f"recipes/{path.name}"
        assert f"distill run {name}" in head
        assert f"| `{name}` |" in (ROOT / "README.md").read_text()


def test_every_recipe_that_needs_no_files_comes_with_distill():
    """The package contains links, which a wheel turns into files. It does not contain the quickstart's reviews."""
    sources = {path.stem: path.resolve() for path in (ROOT / "recipes").glob("*.yaml") if path.stem != "quickstart"}
    assert {name: path.resolve() for name, path in shipped().items()} == sources
