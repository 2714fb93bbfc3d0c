"""The goals of the measurement on a GPU, beside what a visit found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from base_size import SETS, STUDENTS

from distill.storage.files import read_json


def best_teacher(parts: dict[str, Any]) -> dict[str, Any]:
    """Return the run of `distill teacher` that trained fastest."""
    runs = [found for name, found in parts["training"].items() if name.startswith("distill teacher")]
    return max((run for run in runs if "samples_per_second" in run), key=lambda run: run["samples_per_second"])


def teacher_speed(parts: dict[str, Any]) -> float:
    """Return how many times as fast as the notes' way `distill teacher` is."""
    return best_teacher(parts)["samples_per_second"] / parts["training"]["the notes' way"]["samples_per_second"]


def utilisation(parts: dict[str, Any]) -> float:
    """Return the fastest run's share of the peak, as it says itself."""
    share = best_teacher(parts)["model_flop_utilisation"]
    if share is None:
        raise ValueError("the peak was mistimed")
    return share


def student_speed(parts: dict[str, Any]) -> float:
    """Return how many times as fast as TextBrewer's the student stage is."""
    return parts["training"]["distill student and TextBrewer"]["ratio"]


def best_student(parts: dict[str, Any]) -> float:
    """Return the accuracy of the student that is best on validation, over its teacher's; both means over its seeds."""
    arms = parts["accuracy"]["result"]["arms"]
    students = [arm for name, arm in arms.items() if name not in ("teacher", "soft-control")]
    best = max(students, key=lambda arm: sum(arm["validation"].values()) / len(arm["validation"]))
    return sum(best["accuracy"].values()) / sum(arms["teacher"]["accuracy"][seed] for seed in best["accuracy"])


def base_student(parts: dict[str, Any], data: str, name: str) -> float:
    """Return the accuracy of a student of the base-size teacher, over its teacher's."""
    runs = parts["base"][f"{data} result"]["runs"]
    return runs[name]["accuracy"] / runs["teacher"]["accuracy"]


def timed(parts: dict[str, Any], model: str, shape: str) -> dict[str, Any]:
    """Return the formats that were timed at a shape, less those that are right without padding alone."""
    formats = parts["exports"][f"{model} {shape}"]["formats"]
    return {name: found for name, found in formats.items() if "latency_ms" in found and "no mask" not in name}


def least(formats: dict[str, Any], start: str = "") -> float:
    """Return the least median of the formats whose names start so, in milliseconds."""
    return min(found["latency_ms"]["p50"] for name, found in formats.items() if name.startswith(start))


def onnx_speed(parts: dict[str, Any], model: str) -> float:
    """Return how many times as fast as torch in fp16 the best of ONNX Runtime in fp16 is, one text of 128 tokens."""
    formats = timed(parts, model, "1x128")
    return formats["torch-fp16"]["latency_ms"]["p50"] / least(formats, "onnx-fp16")


def most_sequences(parts: dict[str, Any]) -> float:
    """Return the sequences per second of the best format at DistilBERT-base 128x128."""
    return max(found["sequences_per_second"] for found in timed(parts, "distilbert-base", "128x128").values())


def predict_speed(parts: dict[str, Any]) -> float:
    """Return how many times the texts per second of the better pipeline the better of our formats answers."""
    ours, others = [], []
    for found in parts["predict"].values():
        for name, rates in found.get("texts_per_second", {}).items():
            (ours if name.startswith("distill") else others).append(sorted(rates)[len(rates) // 2])
    return max(ours) / max(others)


GOALS: list[tuple[str, str, Callable[[dict[str, Any]], float]]] = [
    ("distill teacher, times the notes' way", ">= 4", teacher_speed),
    ("distill teacher, share of the bf16 peak", ">= 0.45", utilisation),
    ("distill student, times TextBrewer's way", ">= 3", student_speed),
    ("best student's accuracy over its teacher's", ">= 0.993", best_student),
    *(
        (
            f"{data}, base-size teacher, {name}: the same",
            ">= 0.993",
            lambda parts, data=data, name=name: base_student(parts, data, name),
        )
        for data in SETS
        for name in STUDENTS
    ),
    ("BERT-base 1x128: onnx-fp16, times torch-fp16", ">= 1.3", lambda parts: onnx_speed(parts, "bert-base")),
    ("DistilBERT-base: the same", ">= 1.3", lambda parts: onnx_speed(parts, "distilbert-base")),
    ("DistilBERT-base 128x128, sequences/s", ">= 25000", most_sequences),
    ("BERT-base 1x128, least median, ms", "<= 0.5", lambda parts: least(timed(parts, "bert-base", "1x128"))),
    ("DistilBERT-base: the same", "<= 0.5", lambda parts: least(timed(parts, "distilbert-base", "1x128"))),
    ("distill predict, times the pipeline in fp16", ">= 5", predict_speed),
]


def table(work: Path) -> str:
    """Return the goals beside what was found, then every step that failed or was skipped, with the reason."""
    files = {path.stem.removeprefix("gpu-"): read_json(path) for path in sorted(work.glob("gpu-*.json"))}
    parts = {part: found["steps"] for part, found in files.items()}
    lines = [f"{'goal':52} {'wanted':>10} {'found':>12}"]
    for title, wanted, look in GOALS:
        try:
            value = look(parts)
        except (KeyError, ValueError):
            lines.append(f"{title:52} {wanted:>10} {'not measured':>12}")
            continue
        sign, bound = wanted.split()
        met = value >= float(bound) if sign == ">=" else value <= float(bound)
        lines.append(f"{title:52} {wanted:>10} {value:12.3f}  {'met' if met else 'missed'}")
    for part, steps in parts.items():
        done = [name for name, found in steps.items() if not {"error", "skipped"} & set(found)]
        lines.append(f"{part}: {len(done)} of {len(steps)} steps done")
        for name, found in steps.items():
            for kind in {"error", "skipped"} & set(found):
                lines.append(f"  {name}: {kind}: {found[kind].splitlines()[0][:200]}")
            for format, inner in found.get("formats", {}).items():
                if "error" in inner:
                    lines.append(f"  {name}: {format}: {inner['error'][:160]}")
    if any(found["toy"] for found in files.values()):
        lines.append("A rehearsal on toy models: no figure above means anything.")
    return "\n".join(lines)
