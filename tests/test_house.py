"""The rules of the house: floors, cold imports, no torch before it is needed, documentation that is true."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "distill"
# Ground floor first; a module imports only from lower floors, and floor-mates do not import each other.
FLOORS = [
    {"errors", "timing", "provenance", "sampling", "cascade", "page", "training_log", "packages", "section", "labels"},
    {"ranks", "choice", "files", "embeddings", "metrics", "terminal"},
    {"progress", "training_arguments", "devices", "losses", "calibration", "checksums"},
    {"search_space", "tables", "hub", "strangers"},
    {"recipe"},
    {"data_folder", "recipe_file", "models", "tokens", "outliers"},
    {"sources", "pickles", "run_folder", "students", "hidden_states", "first_token", "shards"},
    {"data", "sessions", "plots", "callbacks", "throughput", "micro_batches"},
    {"inspection", "predictors", "onnx_graph", "quantisation", "proofs", "trainers"},
    {"teacher_logits", "training", "fusion", "benchmark", "report", "card"},
    {"export", "candidates"},
    {"fitting"},
    {"distilling"},
    {"sweep", "doctor"},
    {"stages"},
    {"cli"},
    {"__main__", "__init__"},
]
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))


def floor(module):
    return next(index for index, modules in enumerate(FLOORS) if module in modules)


def imports(module):
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "distill":
            yield from [node.module.split(".")[1]] if "." in node.module else [alias.name for alias in node.names]


def test_every_module_has_a_floor():
    assert sorted(module for modules in FLOORS for module in modules) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_lower_floors(module):
    for imported in imports(module):
        assert floor(imported) < floor(module), f"{module} imports {imported}"


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("module", [module for module in MODULES if module != "__main__"])
def test_a_module_imports_in_a_cold_interpreter(module):
    done = python(f"import distill.{module}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "module",
    [
        "cli",
        "errors",
        "recipe",
        "recipe_file",
        "report",
        "files",
        "checksums",
        "run_folder",
        "timing",
        "progress",
        "ranks",
        "packages",
        "plots",
        "page",
        "choice",
    ],
)
def test_light_modules_do_not_import_torch(module):
    done = python(f"import sys, distill.{module}; print('torch' in sys.modules, 'transformers' in sys.modules)")
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_help_answers_without_torch():
    done = python(
        "import sys; sys.argv = ['distill', '--help']\n"
        "import distill.cli\n"
        "try: distill.cli.main()\n"
        "except SystemExit: print('torch' in sys.modules, 'pydantic' in sys.modules)"
    )
    assert done.stdout.splitlines()[-1] == "False False", done.stderr


def test_no_private_name_of_another_module_is_used():
    for module in MODULES:
        tree = ast.parse((PACKAGE / f"{module}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("distill"):
                assert not [alias.name for alias in node.names if alias.name.startswith("_")], module


def test_the_readme_names_every_file_of_the_package_and_no_other():
    readme = (ROOT / "README.md").read_text()
    named = set(re.findall(r"^ {2}(\w+)\.py", readme, flags=re.MULTILINE))
    assert named == set(MODULES)


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
        assert f"distill run recipes/{path.name}" in head
        assert path.name in (ROOT / "README.md").read_text()
