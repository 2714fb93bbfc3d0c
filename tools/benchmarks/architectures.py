"""Take small models of many architectures through every stage, and print what works as a table.

usage: python3 tools/benchmarks/architectures.py RECIPE MODELS WORK [--only NAME ...] [--older PYTHON]

MODELS holds one folder for each model, with its tokenizer. RECIPE says which data to use. Each model is fine-tuned for
some steps, distilled into a student of two of its layers and into a small model of its architecture, and the first
student is exported to every format. `distill` runs as a user would run it, so a traceback in its output is counted as
one. With --older, that Python, which has an older transformers, loads the student with its tokenizer, and its logits
are compared. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import distill
from distill.data.splits import read_splits
from distill.export.fusion import missing_fusions
from distill.machine.devices import describe_hardware
from distill.machine.provenance import versions
from distill.recipe.file import load_recipe
from distill.recipe.schema import FORMATS
from distill.storage.exports import EXPORT_PROOFS
from distill.storage.files import read_json

STEPS = (
    "max_steps=120", "learning_rate=2e-3", "warmup_steps=0.1", "eval_strategy=no", "save_strategy=no",
    "logging_steps=20", "seed=1",
)  # fmt: skip
TEXTS = 50
COMPARE = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
logits = []
for text in json.load(sys.stdin):
    tokens = tokenizer(text, truncation=True, max_length=64, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        logits += model(**tokens).logits.tolist()
print(json.dumps(logits))
"""


def main() -> None:
    """Print a table with a row for each model."""
    parser = argparse.ArgumentParser(description="Take small models of many architectures through every stage.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--older", help="a Python that has an older transformers")
    arguments = parser.parse_args()
    texts = read_splits(load_recipe(arguments.recipe)).validation["text"][:TEXTS]
    found = {}
    columns = ["model", "teacher", "by layers", "by config", "accuracy", *FORMATS, "one node", "older"]
    print(" | ".join(columns), "|".join(["---"] * len(columns)), sep="\n")
    for model in sorted(arguments.models.iterdir()):
        if not arguments.only or model.name in arguments.only:
            shutil.rmtree(arguments.work / model.name, ignore_errors=True)
            found[model.name] = stages(arguments.recipe, model, arguments.work / model.name)
            if arguments.older and (folder := found[model.name].get("folder")):
                found[model.name]["older"] = same_in(arguments.older, Path(folder), texts)
            print(row(model.name, found[model.name]), flush=True)
    print(json.dumps({"models": found, "hardware": describe_hardware(), "versions": versions()}))


def stages(recipe: Path, model: Path, work: Path) -> dict[str, Any]:
    """Return for each stage "yes" or the line that says why not; the exports have their proofs."""
    work.mkdir(parents=True)
    teacher, student, small = work / "teacher", work / "student", work / "small"
    shared = ["--set", "data.max_tokens=64", "--set", f"teacher.model={model}", "--set", "baseline=false"]
    found: dict[str, Any] = {
        "teacher": ran("teacher", recipe, *shared, *steps("teacher"), "--output", teacher),
    }
    if found["teacher"] != "yes":
        return found
    shared += ["--teacher", str(teacher), *steps("student")]
    found["layers"] = ran("student", recipe, "--force", *shared, "--set", "student.layers=2", "--output", student)
    fewer = 'student.config={"num_hidden_layers": 2}'
    found["config"] = ran("student", recipe, "--force", *shared, "--set", fewer, "--output", small)
    source = next((folder for stage, folder in (("layers", student), ("config", small)) if found[stage] == "yes"), None)
    if source:
        found["folder"] = str(source)
        made = ran("export", source, "--set", f"export.formats=[{','.join(FORMATS)}]")
        found["exports"] = read_json(source / "export" / EXPORT_PROOFS) if (source / "export").is_dir() else made
    return found


def steps(stage: str) -> list[str]:
    """Return the options that make the training of a stage short."""
    return [part for setting in STEPS for part in ("--set", f"{stage}.training.{setting}")]


def ran(*command: object) -> str:
    """Run `distill`; return "yes", or why it stopped."""
    done = subprocess.run(
        [sys.executable, "-m", "distill", *map(str, command)], capture_output=True, text=True, timeout=900
    )
    if "Traceback" in done.stderr:
        return f"TRACEBACK: {done.stderr.strip().splitlines()[-1]}"
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    return "yes" if done.returncode == 0 else (errors or done.stderr.strip().splitlines())[-1]


def same_in(python: str, folder: Path, texts: list[str]) -> str:
    """Return "yes" if an older transformers gives the same logits, else what it says or how far off it is."""
    done = subprocess.run(
        [python, "-c", COMPARE, str(folder)], input=json.dumps(texts), capture_output=True, text=True, timeout=300
    )
    if "does not recognize this architecture" in done.stderr:
        return "not known there"
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    off = np.abs(distill.load(folder).logits(texts) - np.array(json.loads(done.stdout))).max()
    return "yes" if off < 1e-3 else f"logits differ by {off:.2g}"


def accuracy_of(exports: dict[str, Any]) -> str:
    """Return the student's validation accuracy; agreement means nothing if it has one answer for every text."""
    proofs = [proof for proof in exports.values() if proof["passed"]]
    if not proofs:
        return "-"
    recalls = [found["accuracy"] for found in proofs[0]["per_class"].values()]
    shown = f"{proofs[0]['accuracy'] + proofs[0]['accuracy_drop']:.3f}"
    return f"{shown}, one answer" if sorted(recalls) == [0.0, 1.0] else shown


def row(name: str, found: dict[str, Any]) -> str:
    """Return a line of the table."""
    cells = [name, *(found.get(stage, "-") for stage in ("teacher", "layers", "config"))]
    exports = found.get("exports", {})
    if isinstance(exports, str):
        return " | ".join([*cells, exports])
    cells.append(accuracy_of(exports))
    for format in FORMATS:
        proof = exports.get(format)
        cells.append("-" if proof is None else proof["reason"] or f"{proof['agreement']:.3f}")
    cells.append(missing_fusions(exports["onnx-fp32"]["fusion"]) or "all" if "onnx-fp32" in exports else "-")
    cells.append(found.get("older", "-"))
    return " | ".join(cells)


if __name__ == "__main__":
    main()
