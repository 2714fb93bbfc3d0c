"""The whole GPU measurement, in visits of some minutes to a machine without a network that nobody can debug on.

usage: python3 tools/gpu/visit.py PART... --work DIR --out DIR [--minilm DIR] [--imdb DIR] [--notes-teacher FILE]
           [--textbrewer "COMMAND"] [--device cuda] [--minutes 9] [--toy]

Parts: check training accuracy exports predict. Each is a list of steps; a step is a command of its own with a limit of
time. One that fails leaves its error in the part's JSON and the visit goes on; one that lacks something is skipped by
name. WORK/gpu-PART.json is written after every step and copied to OUT, with OUT/visit.log. What stands there is not
done again, so the same command goes on where the time ran out. Last comes a table: the goals and what was found.

--imdb is a folder of imdb_train.parquet and imdb_test_small.parquet, with imdb_unsupervised.parquet where there is one.
--notes-teacher takes MODEL TRAIN --texts N --batch N, --textbrewer what student_throughput.py gives its peer; both
print JSON with samples_per_second. --toy rehearses all of it on tiny models and the quickstart's texts. The plan is in
docs/gpu.md; what a part measures in parts.py, the goals in goals.py.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from goals import table
from parts import CONDITIONS, PARTS, toy_texts
from steps import GRACE_SECONDS, REAL, TOY, Step, Visit, attempt

from distill.storage.files import read_json, write_json


def main() -> None:
    """Do the steps that are not done yet, and print what was found against the goals."""
    arguments = parsed()
    begun = time.monotonic()
    size = TOY if arguments.toy else REAL
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    end = begun + 60 * arguments.minutes - GRACE_SECONDS
    visit = Visit(arguments, size, end, arguments.work / "visit.log")
    if arguments.toy:
        toy_texts(visit)
    conditions = attempt(Step("conditions", 2, lambda visit: visit.measure(sys.executable, "-c", CONDITIONS)), visit)
    for part in arguments.parts:
        do(part, visit, conditions)
    print(table(arguments.work))


def parsed() -> argparse.Namespace:
    """Return the arguments, every path absolute: commands run in the project's root."""
    parser = argparse.ArgumentParser(description="The whole GPU measurement, in visits.")
    parser.add_argument("parts", nargs="+", choices=[*PARTS])
    parser.add_argument("--work", required=True, type=Path, help="models, runs and what was measured; outside the tree")
    parser.add_argument("--out", required=True, type=Path, help="where the results are copied to")
    parser.add_argument("--minilm", type=Path, help="folder of a pretrained encoder")
    parser.add_argument("--imdb", type=Path, help="folder of the IMDb files")
    parser.add_argument("--notes-teacher", type=Path, help="script that fine-tunes the plain way")
    parser.add_argument("--textbrewer", help="command that distils with the teacher at every step")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--before", type=Path, help="distillation-gain-gpu.json of an earlier visit, with other seeds")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--minutes", type=float, default=9.0, help="in which all ends, whatever is done by then")
    parser.add_argument("--toy", action="store_true", help="a rehearsal: tiny models, few texts")
    arguments = parser.parse_args()
    for name, value in vars(arguments).items():
        if isinstance(value, Path):
            setattr(arguments, name, value.absolute())
    if arguments.toy:
        arguments.seeds = arguments.seeds[:1]
    return arguments


def do(part: str, visit: Visit, conditions: dict[str, Any]) -> None:
    """Do the steps of a part that its file does not have yet; write the file after each."""
    path = visit.work / f"gpu-{part}.json"
    found = read_json(path) if path.is_file() else {"part": part, "toy": visit.arguments.toy, "steps": {}}
    found["conditions"] = [*found.get("conditions", []), conditions]  # of each visit that added to it
    for step in PARTS[part](visit):
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
