"""Gather everything that a report says about models: measurements, controls, learning curves, cascade."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.answers import answers_in_words
from distill.data.encoding import Cut, Truncation, cut_in_words
from distill.data.pairs import texts_of
from distill.data.splits import gold_labels_of, read_splits
from distill.decisions import answers_of, scores_of
from distill.machine.devices import Device, describe_hardware
from distill.machine.provenance import now, versions
from distill.measuring.baselines import compare_with_baseline
from distill.measuring.benchmark import Measurement, cascade_of, measure
from distill.measuring.candidates import candidates_of, flipped_texts, learning_curves
from distill.measuring.cascade import measure_cascade
from distill.measuring.controls import compare_with_controls
from distill.measuring.metrics import constant_score, never_answered
from distill.measuring.mistakes import mistakes_of
from distill.measuring.runs import recipe_differences, recipes_of, runs_of
from distill.recipe.file import dump_recipe
from distill.recipe.schema import Recipe
from distill.report.choice import Budget, decisive_shape, reference_teacher
from distill.report.document import Findings
from distill.storage.cascades import is_cascade, read_cascade
from distill.storage.contents import run_of
from distill.storage.run_folder import RunFolder


def findings_of(
    models: Sequence[Path],
    sweeps: Sequence[dict[str, Any]],
    recipe: Recipe,
    devices: Sequence[Device],
    budget: Budget | None = None,
) -> Findings:
    """Measure `models` and their exports on the test split of `recipe`; return these findings and those of `sweeps`.

    Raises `BudgetError` before anything is measured if the models do not allow a check of `budget`.
    """
    splits, benchmark = read_splits(recipe), recipe.benchmark
    notes: list[str] = []
    cascades = [model for model in models if is_cascade(model)]
    models = _with_steps(models)
    candidates = [item for model in models for item in candidates_of(model, devices, notes)]
    if budget:
        budget.check({item.role for item in candidates})
    # Measuring takes minutes, so all files in the folders are read (and refused) first.
    comparisons = compare_with_controls(models, notes)
    baselines = compare_with_baseline(models, notes)
    trainings, flipped = list(learning_curves(models)), list(flipped_texts(models))
    recipes = recipes_of(models, notes)
    gold_labels = gold_labels_of(splits.test)
    measurements = measure(
        candidates,
        splits.label_names,
        texts_of(splits.test),
        gold_labels,
        benchmark.shapes,
        rounds=benchmark.rounds,
        threads=benchmark.threads,
        label_map=splits.label_map,
    )
    notes += _cuts_in_words(measurements)
    notes += _never_answered(measurements, gold_labels, splits.label_names)
    notes += [
        f"The teacher of {run.path.name} is a file: {answers_in_words(file)}."
        for run in map(RunFolder, models)
        if run.is_finished
        for file in run.read_manifest()["parents"].get("answer_files", ())
    ]
    device = "auto" if len(devices) > 1 else devices[0]
    # A cascade runs its classifiers in the type that they were saved in.
    answers = {
        Path(item.folder).resolve(): answers_of(item.logits, item.thresholds)
        for item in measurements
        if item.format != "torch-bf16"
    }
    measured = [
        measure_cascade(
            folder,
            splits,
            answers,
            device=device,
            threads=benchmark.threads,
        )
        for folder in cascades
    ]
    constant = constant_score(gold_labels)
    if constant == 1:
        same, others = ("are of one class", "classes")
        if splits.task == "multi_label":
            same, others = ("have the same labels", "labels")
        notes.append(f"All test texts {same}, so the figures say nothing about the other {others}.")
    return Findings(
        measurements=_with_gains(measurements, gold_labels, benchmark.shapes),
        environment={
            "measured": now(),
            "versions": versions(),
            "hardware": describe_hardware(),
            "test_examples": len(splits.test),
            "commonest_class_share": constant,
            "max_tokens": recipe.data.max_tokens,
            "rounds": benchmark.rounds,
            "data": splits.fingerprints,
            "leaks_dropped": dict(splits.leaks),
        },
        data_name=recipe.data.dataset or Path(recipe.data.files.test or recipe.data.files.train).name,
        shapes=benchmark.shapes,
        task=splits.task,
        notes=notes,
        label_names=splits.label_names,
        comparisons=comparisons,
        baselines=baselines,
        trainings=trainings,
        runs=list(runs_of(recipes)),
        differences=recipe_differences(recipes),
        mistakes=mistakes_of(
            measurements, splits.test["example_id"][:], splits.test["text"][:], gold_labels, splits.label_names
        ),
        cascade=cascade_of(measurements, gold_labels, benchmark.shapes[0]),
        cascades=measured,
        flipped=flipped,
        sweeps=sweeps,
        recipe=dump_recipe(recipe),
    )


def _with_gains(
    measurements: Sequence[Measurement], gold_labels: np.ndarray, shapes: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the entries of report.json; those of students have their gain over the teacher and its 95 % interval.

    The interval is that of the mean of paired differences (normal approximation).
    """
    rows = [item.as_json() for item in measurements]
    shape = decisive_shape(rows, shapes)
    teacher = reference_teacher(rows, shape) if shape else None
    if teacher is None:
        return rows
    scores = [(answers_of(item.logits, item.thresholds), gold_labels) for item in measurements]
    its_scores = scores_of(*scores[rows.index(teacher)])
    for row, score in zip(rows, scores, strict=True):
        if row["role"] == "student":
            gains = scores_of(*score) - its_scores
            half = 1.96 * float(gains.std()) / len(gains) ** 0.5
            gain = float(gains.mean())
            row["against_teacher"] = {"gain": gain, "gain_ci95": [gain - half, gain + half]}
    return rows


def _with_steps(models: Sequence[Path]) -> list[Path]:
    """Return the models, with a cascade replaced by the models that it is made of (an export by its model)."""
    found: dict[Path, Path] = {}
    for model in models:
        for step in read_cascade(model).models if is_cascade(model) else [model]:
            run = run_of(step) if is_cascade(model) else None
            place = Path(os.path.relpath(run.path)) if run else step
            found.setdefault(place.resolve(), place)
    return list(found.values())


def _never_answered(
    measurements: Sequence[Measurement], gold_labels: np.ndarray, label_names: Sequence[str]
) -> list[str]:
    """Return a note for the classes of test texts that models never answer, with the roles of these models."""
    roles: dict[str, dict[str, None]] = {}
    for item in measurements:
        if never := never_answered(answers_of(item.logits, item.thresholds), gold_labels, label_names):
            roles.setdefault(never, {})[item.role] = None
    return [
        f"The {' and the '.join(found)} never answer{'' if len(found) > 1 else 's'} {never}."
        for never, found in roles.items()
    ]


def _cuts_in_words(measurements: Sequence[Measurement]) -> list[str]:
    """Return a note for each part of a text that models read, with their roles, if much is cut off."""
    roles: dict[tuple[Truncation, Cut], dict[str, None]] = {}
    for item in measurements:
        cut = Cut(item.texts_cut, item.tokens_cut)
        if item.max_tokens and item.truncation and cut.matters:
            roles.setdefault((Truncation(item.max_tokens, item.truncation), cut), {})[item.role] = None
    return [
        f"The {' and the '.join(found)} "
        + cut_in_words(truncation, cut, "the test texts", verb="read" if len(found) > 1 else "reads")
        + "."
        for (truncation, cut), found in roles.items()
    ]
