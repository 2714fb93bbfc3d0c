"""Compare pruned students with students of N layers that take as long in int8, over several seeds.

usage: python3 tools/benchmarks/pruned_students.py RECIPE --teacher DIR --work DIR [--layers 1 2 3] [--faster 1.0 1.5]
           [--seeds 1 2 3] [--shape 1x128] [--rounds 30] [--threads 2] [--in-rounds]

RECIPE has the data and the training of all students. For each number in --layers, a student of so many layers is
trained and exported to onnx-int8. For each number in --faster, a pruned student has to be that many times as fast as
that student. Its budget is a speed-up over the teacher, since a budget in milliseconds would mean another model
whenever the machine becomes slower or faster. With --in-rounds, the student of so many layers is pruned by the same
number too, and distilled again: two rounds, where the others take one. At the end all exports are timed in turn.

You can stop the script and start it again: it keeps finished runs in WORK and resumes interrupted ones. It prints a
table; the last line is the whole result as JSON: accuracy by seed, the latencies of each export, and the differences of
a pruned student to the other with a permutation test.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from seeded_runs import correct_texts, distill, pooled_p_value

from distill.inference.classifier import open_session, weights_bytes
from distill.machine.cpu import cores
from distill.machine.devices import describe_hardware
from distill.machine.provenance import versions
from distill.machine.timing import speedup, time_in_turn
from distill.measuring.benchmark import call_at
from distill.models.loading import load_config
from distill.storage.files import read_json, write_json
from distill.storage.run_folder import RunFolder

FORMAT = "onnx-int8"
TEACHER = "teacher"
ONE_ROUND, TWO_ROUNDS = "pruned", "twice"


def main() -> None:
    """Train what is missing, time all exports in turn and print the comparison."""
    parser = argparse.ArgumentParser(description="Compare pruned students with students of N layers.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--teacher", required=True, type=Path)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--faster", type=float, nargs="+", default=[1.0, 1.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--shape", default="1x128")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--in-rounds", action="store_true")
    parser.add_argument("--set", nargs="*", default=[], dest="sets", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for layers in arguments.layers:
            make(arguments, seed, f"layers-{layers}", f"student.layers={layers}")
    budgets = budgets_of(arguments)
    for seed in arguments.seeds:
        for name, budget in budgets.items():
            make(arguments, seed, name, f"student.prune={{speedup: {budget}, shape: {arguments.shape}}}")
            if arguments.in_rounds:
                _, _, layers, _, faster = name.split("-")
                first = (arguments.work / f"seed-{seed}" / f"layers-{layers}").resolve()
                setting = f"student.prune={{speedup: {faster}, shape: {arguments.shape}, model: {first}}}"
                make(arguments, seed, name.replace(ONE_ROUND, TWO_ROUNDS), setting)
    if arguments.in_rounds:
        budgets |= {name.replace(ONE_ROUND, TWO_ROUNDS): budget for name, budget in budgets.items()}
    report(arguments, budgets)


def make(arguments: argparse.Namespace, seed: int, name: str, setting: str) -> None:
    """Train and export a student, unless it is finished."""
    run = RunFolder(arguments.work / f"seed-{seed}" / name)
    settings = (
        setting, f"student.training.seed={seed}", f"benchmark.threads={arguments.threads}",
        f"export.formats=[{FORMAT}]", *arguments.sets,
    )  # fmt: skip
    sets = [part for one in settings for part in ("--set", one)]
    if not run.is_finished:
        distill("student", arguments.recipe, "--teacher", arguments.teacher, "--output", run.path, "--resume", *sets)
    if not (run.export / FORMAT / "proof.json").is_file():
        distill("export", run.path)


def budgets_of(arguments: argparse.Namespace) -> dict[str, float]:
    """Return the budget of each pruned student, a speed-up over the teacher; it is measured once and kept."""
    path = arguments.work / "budgets.json"
    if not path.is_file():
        if not (arguments.teacher / "export" / FORMAT).is_dir():
            distill("export", arguments.teacher, "--int8")
        first = arguments.work / f"seed-{arguments.seeds[0]}"
        students = {str(layers): first / f"layers-{layers}" for layers in arguments.layers}
        found = timed(arguments, {TEACHER: arguments.teacher} | students)
        write_json(path, {layers: speedup(found[TEACHER], found[layers]).median for layers in students})
    speedups = read_json(path)
    return {
        f"{ONE_ROUND}-as-{layers}-over-{faster:g}": round(speedups[str(layers)] * faster, 4)
        for layers in arguments.layers
        for faster in arguments.faster
    }


def timed(arguments: argparse.Namespace, runs: dict[str, Path]) -> dict[str, list[float]]:
    """Return the latencies of the runs' exports in milliseconds, timed in turn."""
    calls = {}
    for name, run in runs.items():
        folder = str(run / "export" / FORMAT)
        config = load_config(folder)
        session = open_session(folder, config, "cpu", threads=arguments.threads)
        calls[name] = call_at(session, arguments.shape, vocabulary=config.vocab_size)
    return time_in_turn(calls, arguments.rounds)


def kept(run: RunFolder) -> dict[str, list[int]]:
    """Return which layers a pruned student keeps, and how many heads and channels of each."""
    parts = read_json(run.pruning)["kept"]
    return {"layers": parts["layers"], **{name: [len(one) for one in parts[name]] for name in ("heads", "channels")}}


def report(arguments: argparse.Namespace, budgets: dict[str, float]) -> None:
    """Print accuracy and latency of each student, and each pruned one against the one that it was measured by."""
    names = [*(f"layers-{layers}" for layers in arguments.layers), *budgets]
    runs = {
        (name, seed): RunFolder(arguments.work / f"seed-{seed}" / name) for name in names for seed in arguments.seeds
    }
    latencies = timed(
        arguments, {TEACHER: arguments.teacher} | {f"{name} {seed}": run.path for (name, seed), run in runs.items()}
    )
    correct = {key: correct_texts(run) for key, run in runs.items()}
    result: dict[str, Any] = {}
    for name in names:
        own = {seed: latencies[f"{name} {seed}"] for seed in arguments.seeds}
        entry: dict[str, Any] = {
            "accuracy": {seed: float(correct[name, seed].mean()) for seed in arguments.seeds},
            "latency_ms": {seed: median(values) for seed, values in own.items()},
            "raw_ms": {seed: [round(value, 4) for value in values] for seed, values in own.items()},
            "size_bytes": weights_bytes(runs[name, arguments.seeds[0]].export / FORMAT),
        }
        row = f"{name:24} {mean(entry['accuracy'].values()):.4f} {mean(entry['latency_ms'].values()):8.3f} ms"
        if name in budgets:
            other = f"layers-{name.split('-')[2]}"
            theirs = [correct[other, seed] for seed in arguments.seeds]
            ours = [correct[name, seed] for seed in arguments.seeds]
            ratios = [speedup(latencies[f"{other} {seed}"], own[seed])._asdict() for seed in arguments.seeds]
            entry |= {
                "speedup_asked": budgets[name],
                "speedup": {seed: speedup(latencies[TEACHER], values).median for seed, values in own.items()},
                "kept": {seed: kept(runs[name, seed]) for seed in arguments.seeds},
                "compared_with": other,
                "gain": float(np.mean(ours) - np.mean(theirs)),
                "p_value": pooled_p_value(ours, theirs),
                "times_as_fast": dict(zip(arguments.seeds, ratios, strict=True)),
            }
            row += f"  {100 * entry['gain']:+.2f} points and x{mean(one['median'] for one in ratios):.2f} of {other}"
        result[name] = entry
        print(row)
    shown = {name: str(value) for name, value in vars(arguments).items()}
    print(json.dumps({"arguments": shown, "students": result, "hardware": describe_hardware(), "versions": versions()}))


if __name__ == "__main__":
    main()
