"""Measure distill on one GPU, part by part, and compare what was found with the goals.

usage: python3 tools/gpu/visit.py PART... --work DIR --out DIR [--minilm DIR] [--base DIR] [--imdb DIR]
           [--yelp DIR] [--notes-teacher FILE] [--textbrewer "COMMAND"] [--steps NAME...] [--formats NAME...]
           [--device cuda] [--minutes 9] [--toy]

The parts are check, training, accuracy, base, exports, predict and kinds. Each is a list of steps; a step is a command
of its own with its own time limit. If a step fails, its error is kept in the part's JSON and the next step begins. If a
step lacks something, it is skipped, and the JSON says what is missing. WORK/gpu-PART.json is written after every step
and copied to OUT, with WORK/visit.log. Finished steps are not repeated, so the same command continues where the time
ran out. The last thing printed is a table of the goals and what was found.

--minilm and --base are pretrained encoders, a small one and one of BERT-base's size. --imdb is a folder with
imdb_train.parquet, imdb_test_small.parquet and, optionally, imdb_unsupervised.parquet; --yelp is one with
yelp_train.parquet and yelp_test_small.parquet. --notes-teacher is called with MODEL TRAIN --texts N --batch N,
--textbrewer with the arguments that student_throughput.py gives its peer; both print JSON with samples_per_second.
--toy rehearses everything on tiny models and the quickstart's texts. docs/gpu.md describes the measurement; parts.py
has the steps, goals.py the goals.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from goals import table
from inputs import toy_texts
from parts import CONDITIONS, PARTS
from steps import GRACE_SECONDS, REAL, TOY, Step, Visit, attempt

from distill.storage.files import read_json, write_json


def main() -> None:
    """Run the steps that are not finished yet, and print the goals and what was found."""
    arguments = parsed()
    begun = time.monotonic()
    size = TOY if arguments.toy else REAL
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    end = begun + 60 * arguments.minutes - GRACE_SECONDS
    visit = Visit(arguments, size, end, arguments.work / "visit.log")
    known = [step.name for part in arguments.parts for step in PARTS[part](visit)]
    if unknown := set(arguments.steps or ()) - set(known):
        sys.exit(f"--steps: {', '.join(sorted(unknown))}: no step of {', '.join(arguments.parts)} ({', '.join(known)})")
    if arguments.toy:
        toy_texts(visit)
    conditions = attempt(Step("conditions", 2, lambda visit: visit.measure(sys.executable, "-c", CONDITIONS)), visit)
    for part in arguments.parts:
        do(part, visit, conditions)
    print(table(arguments.work))


def parsed() -> argparse.Namespace:
    """Return the arguments with absolute paths, since commands run in the project's root."""
    parser = argparse.ArgumentParser(description="Measure distill on one GPU, part by part; see docs/gpu.md.")
    parser.add_argument("parts", nargs="+", choices=[*PARTS])
    parser.add_argument("--work", required=True, type=Path, help="for models, runs, measurements; outside the tree")
    parser.add_argument("--out", required=True, type=Path, help="folder that the results are copied to")
    parser.add_argument("--minilm", type=Path, help="folder of a pretrained encoder and its tokenizer")
    parser.add_argument("--base", type=Path, help="folder of a pretrained encoder of BERT-base's size")
    parser.add_argument("--imdb", type=Path, help="folder of the IMDb files, as named in docs/gpu.md")
    parser.add_argument("--yelp", type=Path, help="folder of the Yelp files, as named in docs/gpu.md")
    parser.add_argument("--notes-teacher", type=Path, help="script that fine-tunes with a plain Trainer")
    parser.add_argument("--textbrewer", help="command that distills with TextBrewer")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds of the part accuracy")
    parser.add_argument("--steps", nargs="+", help="do only these steps of the parts, by name")
    parser.add_argument("--formats", nargs="+", help="time only these formats in the part exports, by name")
    parser.add_argument("--before", type=Path, help="distillation-gain-gpu.json of an earlier run with other seeds")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--minutes", type=float, default=9.0, help="time limit of the command; the next continues")
    parser.add_argument("--toy", action="store_true", help="rehearse on tiny models and few texts")
    arguments = parser.parse_args()
    for name, value in vars(arguments).items():
        if isinstance(value, Path):
            setattr(arguments, name, value.absolute())
    if arguments.toy:
        arguments.seeds = arguments.seeds[:1]
    return arguments


def do(part: str, visit: Visit, conditions: dict[str, Any]) -> None:
    """Run the steps of a part that its file does not have yet; write the file after each."""
    path = visit.work / f"gpu-{part}.json"
    found = read_json(path) if path.is_file() else {"part": part, "toy": visit.arguments.toy, "steps": {}}
    found["conditions"] = [*found.get("conditions", []), conditions]  # of each command that added to it
    for step in PARTS[part](visit):
        if visit.arguments.steps and step.name not in visit.arguments.steps:
            continue
        before = found["steps"].get(step.name)
        if before and not step.again and not {"error", "skipped"} & set(before):
            continue
        found["steps"][step.name] = attempt(step, visit)
        write_json(path, found)
        for file in (path, visit.log, *visit.work.glob("distillation-gain-gpu.json")):
            if file.is_file():
                shutil.copy(file, visit.arguments.out)


if __name__ == "__main__":
    main()
