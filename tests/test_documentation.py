"""Every command and every example that the documentation shows, run as it is written, on small models and data."""

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
from conftest import make_classifier, write_reviews
from ruamel.yaml import YAML
from safetensors.torch import load_file

from distill.recipe.file import load_recipe
from distill.recipe.schema import Ngrams, Prune, Recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "results.md")]
TRANSLATION = ROOT / "README.zh-CN.md"
# What two machines or GPUs are needed for; tests/test_ranks.py has ranks.
NOT_HERE = ("torchrun --nnodes", "accelerate launch --multi_gpu")


def blocks(page, language):
    """The fenced blocks of a page in a language ("" for commands and output)."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [block for named, block in found if named == language]


def commands(page):
    """The command lines of a page, without the comment after them."""
    for block in blocks(page, ""):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"(distill \w|torchrun |accelerate |python3 tools/)", line):
                yield " ".join(re.sub(r"\s+#.*", "", line).split())


ALL = list(dict.fromkeys(command for page in PAGES for command in commands(page)))
RUN = [command for command in ALL if not command.startswith((*NOT_HERE, "python3 tools/"))]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with small data and models under the names that the pages use."""
    folder = tmp_path_factory.mktemp("documentation")
    for name, count, seed in (("train", 400, 0), ("test", 40, 1), ("more_texts", 30, 2), ("texts", 12, 3)):
        write_reviews(folder / f"{name}.csv", count, seed=seed)
    with open(folder / "answers.jsonl", "w") as file:
        for text, label in list(csv.reader((folder / "train.csv").read_text().splitlines()))[1:]:
            file.write(json.dumps({"text": text, "votes": [label, "positive"]}) + "\n")
    model = make_classifier(folder / "bert")
    shutil.copytree(model, folder / "old-model")
    torch.save(load_file(model / "model.safetensors"), folder / "old-model" / "pytorch_model.bin")
    (folder / "old-model" / "model.safetensors").unlink()
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    training = {"num_train_epochs": 1, "learning_rate": 3e-3, "per_device_train_batch_size": 16}
    for path in (folder / "recipes").glob("*.yaml"):
        recipe = YAML(typ="safe").load(path)
        recipe["data"] |= {"files": {"train": "train.csv", "test": "test.csv"}, "max_tokens": 32}
        recipe["data"] = {key: recipe["data"][key] for key in ("files", "max_tokens", "label_names")}
        recipe["data"]["label_names"] = ["negative", "positive"]
        recipe["teacher"] = {"model": str(model), "training": training}
        recipe["student"] = {"layers": 1, "training": training}
        recipe["export"] = recipe.get("export", {}) | {"max_accuracy_drop": 1.0, "min_agreement": 0.0}
        recipe["benchmark"] = {"shapes": ["1x16", "4x16"], "rounds": 5}
        if "sweep" in recipe:
            recipe["sweep"]["trials"] = 2
        for place in (path, folder / path.stem):  # a file of that name wins over a recipe that comes with distill
            with open(place, "w") as file:
                YAML(typ="safe").dump(recipe, file)
    return folder


def run(command, world):
    """Run a command line of the pages in `world`; return what it printed."""
    words = shlex.split(command)
    python = [sys.executable, "-m"]
    words = [*python, "torch.distributed.run", *words[1:]] if words[0] == "torchrun" else [*python, *words]
    # A teacher of 120 texts and one epoch need not know anything; the pages' own have learned.
    if {"student", "sweep"} & set(words[:4]) or ("run" in words[:4] and "--force" not in words):
        words.append("--force")
    if "init" in words[:4]:
        words += ["--teacher", "bert", "--student", "bert"]
    if "recipe.yaml" in words and "run" in words:
        words += ["--set", "export.max_accuracy_drop=1.0", "--set", "export.min_agreement=0.0"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if "serve" in words[:4]:
        return run_until_it_serves([*words, "--port", "0"], world, environment)
    return subprocess.run(words, cwd=world, env=environment, capture_output=True, text=True, timeout=600)


def run_until_it_serves(words, world, environment):
    """Run a server, which ends only by a signal: it gets one as soon as it has said its address and answered there."""
    process = subprocess.Popen(
        words, cwd=world, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    said = ""
    for line in process.stderr:
        said += line
        if address := re.search(r"http://\S+", line):
            with urllib.request.urlopen(f"{address[0]}/health", timeout=60) as response:
                assert json.loads(response.read())["status"] == "ok"
            process.send_signal(signal.SIGTERM)
    ended = process.wait(60)
    return subprocess.CompletedProcess(
        words, 0 if ended == 128 + signal.SIGTERM else ended, process.stdout.read(), said
    )


def test_the_pages_show_commands():
    assert len(RUN) > 15 and {shlex.split(command)[1] for command in RUN if command.startswith("distill")} == {
        "check", "inspect", "doctor", "teacher", "student", "export", "report", "predict", "run", "convert", "sweep",
        "recipes", "baseline", "cascade", "init", "evaluate", "verify", "bundle", "serve",
    }  # fmt: skip


@pytest.mark.slow
def test_every_command_shown_runs(world):
    pytest.importorskip("openvino")
    failed = {}
    # In the order of the README, whose later commands use what the earlier ones left.
    for command in RUN:
        done = run(command, world)
        if "training.fsdp" in command and "Signal 11 (SIGSEGV)" in done.stderr:  # see GLOO_MAY_CRASH
            done = run(f"{command} --overwrite", world)
        # The doctor finds faults of this machine, too, a budget may be met by nothing, and a cascade of models as small
        # as these may be slower than the last one alone.
        may_fail = any(word in command for word in (" doctor", "--max-drop", "cascade"))
        if done.returncode not in ((0, 2) if may_fail else (0,)) or "Traceback" in done.stderr:
            failed[command] = done.stderr[-1_000:]
    assert not failed
    for page in PAGES:
        for block in blocks(page, "python"):
            # tests/test_ray.py runs what needs Ray, where it is installed, and tests/test_serve.py what asks a server.
            if "import ray" in block or "InferenceClient" in block:
                continue
            environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
            done = subprocess.run(
                [sys.executable, "-c", block], cwd=world, env=environment, capture_output=True, text=True, timeout=600
            )
            assert done.returncode == 0, f"{page.name}: {block}\n{done.stderr[-1_000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipes_shown_are_valid(page, tmp_path):
    for index, block in enumerate(blocks(page, "yaml")):
        path = tmp_path / f"{index}.yaml"
        path.write_text(block, encoding="utf-8")
        load_recipe(path)


def test_the_page_on_recipes_shows_every_key_with_its_default(tmp_path):
    block, *_ = blocks(ROOT / "docs" / "recipes.md", "yaml")
    shown = YAML(typ="safe").load(block)
    path = tmp_path / "recipe.yaml"
    path.write_text(block)
    defaults = Recipe.model_validate(
        {
            "data": {"dataset": "x"},
            "teacher": {"model": "x"},
            "student": {"layers": 3},
            "sweep": {"keys": {"student.loss.temperature": [1, 2]}},
        }
    ).model_dump(mode="json")
    found = load_recipe(path).model_dump(mode="json")
    needed = {"data.dataset", "data.label_names", "teacher.model", "teacher.training", "student.training", "sweep.keys"}
    assert shown["baseline"] == defaults.pop("baseline")
    for section, keys in defaults.items():
        commented = {"data": {"files"}, "student": {"model", "config", "ngrams", "prune"}}.get(section, set())
        assert set(shown[section]) | commented == set(keys), section
        for key, value in keys.items():
            assert f"{section}.{key}" in needed or found[section][key] == value, f"{section}.{key}"
    assert set(shown["student"]["loss"]) == set(defaults["student"]["loss"])
    (ngrams,) = re.findall(r"# ngrams: (\{.*?\})", block)
    assert YAML(typ="safe").load(ngrams) == Ngrams().model_dump()
    (prune,) = re.findall(r"# prune: (\{.*?\})", block)
    assert YAML(typ="safe").load(prune) == {key: field.default for key, field in Prune.model_fields.items()}


def test_links_lead_somewhere_and_nothing_is_left_to_fill_in():
    for page in (*PAGES, ROOT / "docs" / "results.md", ROOT / "CONTRIBUTING.md", TRANSLATION):
        assert "@@" not in page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_translation_shows_the_same_commands_recipes_and_files():
    readme = PAGES[0]
    assert list(commands(TRANSLATION)) == list(commands(readme))
    values = [[YAML(typ="safe").load(block) for block in blocks(page, "yaml")] for page in (TRANSLATION, readme)]
    assert values[0] == values[1]
