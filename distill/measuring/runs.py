"""How the models of a report were trained: what from, how large, how long; and what differs between their recipes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path, PurePath
from typing import Any

from safetensors import safe_open

from distill.errors import UserError
from distill.measuring.training_log import course_in_words
from distill.recipe.file import load_recipe
from distill.recipe.schema import Prune
from distill.storage.run_folder import RunFolder

SECTIONS = {"baseline": (), "teacher": ("teacher",), "student": ("student",), "control": ("student",)}  # by role
# Keys that say where things are or what else is made. What is in the files is compared by its fingerprint.
NOT_TRAINING = ("data.files", "student.output", "teacher.output", "student.control")


def recipes_of(models: Sequence[Path], notes: list[str]) -> dict[RunFolder, dict[str, Any]]:
    """Return the values in the recipe of each run folder among `models`, by their dotted keys.

    A recipe that cannot be read, for example one of an earlier version of distill, has no values and adds a note: the
    figures of the model do not depend on it.
    """
    found = {}
    for run in map(RunFolder, models):
        if not run.is_finished:
            continue
        try:
            found[run] = _flat(load_recipe(run.recipe).model_dump(mode="json"))
        except UserError as error:
            found[run] = {}
            notes.append(f"The recipe of {run.path} cannot be compared with others: {error.problems[0]}.")
    return found


def runs_of(recipes: Mapping[RunFolder, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield how each run folder was trained (see `recipes_of`).

    `seconds` is the time of the training itself, `parameters` their number, `origin` what the model was made from, and
    `course` says in words how far the training went and what was kept.
    """
    for run, values in recipes.items():
        manifest, training = run.read_manifest(), run.read_metrics()["training"]
        role = manifest["role"]
        yield {
            "model": str(run.path),
            "role": role,
            "origin": _origin(values, role),
            "finished": manifest.get("finished"),
            "parameters": _parameters(run.path),
            "seconds": training.get("seconds", training.get("training_seconds")),
            "examples_per_second": training.get("samples_per_second"),
            "precision": manifest.get("precision"),
            "hardware": manifest.get("hardware", {}).get("cpu"),
            "processes": manifest.get("processes"),
            "threads": manifest.get("threads"),
            "course": course_in_words(training),
        }


def recipe_differences(recipes: Mapping[RunFolder, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the recipe keys in which run folders of the same kind differ: teachers, or students with their controls.

    Each kind has its `models`, and for each of the `keys` its name `key` and the `values` in the order of the models; a
    recipe that lacks the key has None. Only the keys that a stage's result depends on are compared: those of data, and
    of its own section. Files and teachers are compared by their contents: a value has the name and the first digits of
    the SHA-256.
    """
    found = []
    for roles in (("teacher",), ("student", "control")):
        alike = {
            str(run.path): values for run, values in recipes.items() if values and run.read_manifest()["role"] in roles
        }
        keys = dict.fromkeys(
            key
            for values in alike.values()
            for key in values
            if key.partition(".")[0] in ("data", *SECTIONS[roles[0]]) and not key.startswith(NOT_TRAINING)
        )
        rows = [{"key": key, "values": [values.get(key) for values in alike.values()]} for key in keys]
        runs = [run for run in recipes if str(run.path) in alike]
        rows += _contents(runs, [recipes[run] for run in runs])
        if differing := [row for row in rows if any(value != row["values"][0] for value in row["values"])]:
            found.append({"models": list(alike), "keys": differing})
    return found


def _contents(runs: Sequence[RunFolder], recipes: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield a row for each split, and for the teachers, of which the contents differ between runs."""
    manifests = [run.read_manifest() for run in runs]
    for split in ("train", "transfer", "test"):  # validation is mostly a part of train
        digests = [manifest.get("data", {}).get(split) for manifest in manifests]
        if len(set(digests)) > 1:
            names = [PurePath(str(values.get(f"data.files.{split}", split))).name for values in recipes]
            yield {
                "key": f"data: {split}",
                "values": [digest and f"{name} {digest[:12]}" for name, digest in zip(names, digests, strict=True)],
            }
    # A control has no teacher; its student's are in the student's column.
    taught = [manifest["parents"].get("teachers", {}) for manifest in manifests]
    if len({tuple(teachers.values()) for teachers in taught if teachers}) > 1:
        shown = [", ".join(f"{PurePath(name).name} {digest[:12]}" for name, digest in each.items()) for each in taught]
        yield {"key": "teachers", "values": [names or None for names in shown]}


def _origin(values: Mapping[str, Any], role: str) -> str | None:
    """What a teacher or student was made from, in words, from its section of the recipe."""
    for section in SECTIONS[role]:
        if model := values.get(f"{section}.model"):
            return f"from {model}"
        if layers := values.get(f"{section}.layers"):
            return (
                f"layers {', '.join(map(str, layers))} of the teacher"
                if isinstance(layers, list)
                else (f"{layers} of the teacher's layers")
            )
        if prune := {key: value for key in Prune.model_fields if (value := values.get(f"{section}.prune.{key}"))}:
            return f"{prune.get('model', 'the teacher')} pruned to {Prune(**prune).in_words}"
        for key, meaning in {"config": "the teacher's architecture with", "ngrams": "n-grams with"}.items():
            place = f"{section}.{key}."
            if sizes := [
                f"{name.removeprefix(place)} {value}" for name, value in values.items() if name.startswith(place)
            ]:
                return f"{meaning} {', '.join(sizes)}"
    return None


def _flat(values: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """The values of a recipe by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{place}{key}.")
        elif value is not None:
            found[f"{place}{key}"] = value
    return found


def _parameters(folder: Path) -> int | None:
    """The number of parameters in a folder's safetensors files, read from their headers; None if it has none.

    Beside its parameters, a baseline stores which n-grams it reads and how rare they are.
    """
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "np") as tensors:
            total += sum(prod(tensors.get_slice(name).get_shape()) for name in {*tensors.keys()} - {"columns", "idf"})
    return total or None
