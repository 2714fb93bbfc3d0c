"""Make a cascade of finished classifiers: measure each on validation, find thresholds that keep a promise, write it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from distill.data.splits import Splits
from distill.errors import FolderError, PromiseError
from distill.inference.cascade import Cascade
from distill.inference.classifier import fastest_export, load
from distill.machine.progress import progress_line
from distill.measuring.benchmark import WARMUP_TEXTS, timed_logits
from distill.measuring.metrics import accuracy_interval
from distill.measuring.promise import Promise, Steps, cheapest_cascade
from distill.models.loading import align_labels
from distill.storage.cascades import is_cascade, read_cascade, write_cascade
from distill.storage.contents import run_of
from distill.storage.exports import EXPORT_PROOFS

log = logging.getLogger("distill")

TIMED_ALONE = 300  # test texts that are timed one by one


def make_cascade(
    models: Sequence[Path], splits: Splits, output: Path, promise: Promise, *, device: str
) -> dict[str, Any]:
    """Write a cascade of the classifiers `models`, cheapest first, to `output`; return its cascade.json.

    The thresholds are found on the validation texts of `splits`, and `promise` says what they keep. Raises
    `PromiseError` if the texts are too few to prove it, or if no cascade is sure to keep it.
    """
    texts, gold_labels = splits.validation["text"][:], np.asarray(splits.validation["label"][:])
    needed = promise.texts_needed(len(models))
    if len(texts) < needed:
        raise PromiseError(
            f"cascade: that it {promise} takes at least {needed} validation texts to prove, and there are {len(texts)}",
            hint="a larger data.validation_fraction or validation file; or a weaker promise",
        )
    logits, seconds = [], []
    for model in models:
        classifier = load(model, device)
        columns = align_labels(classifier.label_names, splits.label_names, teacher=str(model))
        with progress_line(f"{model.name}: validation", len(texts), "text") as line:
            found, rate = timed_logits(classifier, texts, progress=line.update)
        logits.append(found[:, columns])
        seconds.append(1 / rate)
    probabilities = [softmax(found, axis=1) for found in logits]
    steps = Steps(
        np.stack([found.max(axis=1) for found in probabilities]),
        np.stack([found.argmax(axis=1) for found in logits]),
        seconds,
    )
    for model, cost, later in zip(models, seconds, seconds[1:], strict=False):
        if cost >= later:
            log.warning("cascade: %s is not faster than the one after it: the cheapest comes first", model)
    found = cheapest_cascade(steps, gold_labels, promise)
    if found is None:
        agrees = (steps.answers[:-1] == steps.answers[-1]).mean(axis=1)
        raise PromiseError(
            f"cascade: no thresholds are sure to keep the promise that it {promise}; on their own, the others agree "
            f"with it on {' and '.join(f'{share:.2%}' for share in agrees)} of {len(texts)} validation texts",
            hint="a weaker promise, more validation texts, or better students",
        )
    of_tested = steps.of(found.tested)
    answered_by = of_tested.answered_by(found.thresholds)
    answers = of_tested.answers_of(found.thresholds)
    agreed = int((answers == of_tested.answers[-1]).sum())
    right = int((answers == gold_labels[found.tested]).sum())
    promised = {
        "agree": promise.agree,
        "accuracy_drop": promise.accuracy_drop,
        "confidence": promise.confidence,
        "texts": len(found.tested),
        "ordering_texts": len(texts) - len(found.tested),
        "agreement": agreed / len(found.tested),
        "accuracy": right / len(found.tested),
        "accuracy_ci95": accuracy_interval(right, len(found.tested)),
        "last_accuracy": float((of_tested.answers[-1] == gold_labels[found.tested]).mean()),
        "answered": [float((answered_by == step).mean()) for step in range(len(models))],
        "texts_per_second": [1 / cost for cost in seconds],
        "data": {"validation": splits.fingerprints["validation"]},
    }
    return write_cascade(output, models, found.thresholds, promised)


def classifiers_of(folders: Sequence[Path], device: str) -> list[Path]:
    """Return the folder of each classifier of a cascade; of a folder of exports, the one that was fastest.

    Raises `FolderError` if there are fewer than two, if one is there twice, or if one is itself a cascade.
    """
    if len(folders) < 2:
        raise FolderError(f"cascade: wants two classifiers or more, cheapest first, got {len(folders)}")
    models = []
    for folder in folders:
        if is_cascade(folder):
            raise FolderError(f"{folder}: is itself a cascade; name its classifiers")
        is_exports = (folder / EXPORT_PROOFS).is_file() and not (folder / "config.json").is_file()
        models.append(fastest_export(folder, device)[0] if is_exports else folder)
        if not models[-1].is_dir():
            raise FolderError(f"{folder}: no such folder")
    resolved = [model.resolve() for model in models]
    twice = [model for index, model in enumerate(models) if resolved[index] in resolved[:index]]
    if twice:
        raise FolderError(f"{twice[0]}: is in the cascade twice")
    return models


def check_same_texts(models: Sequence[Path], splits: Splits) -> None:
    """Raise `FolderError` if a model was trained with other validation texts than those of `splits`.

    Its own validation texts may be among the other models' train texts, on which these are surer than on new texts.
    """
    for model in models:
        run = run_of(model)
        known = run.read_manifest()["data"].get("validation") if run else None
        if known and known != splits.fingerprints["validation"]:
            raise FolderError(
                f"{model}: was trained with other validation texts than {models[-1]}",
                hint="train all classifiers of a cascade on one recipe's data; or name new texts with --recipe",
            )


def measure_cascade(
    folder: Path,
    label_names: Sequence[str],
    texts: Sequence[str],
    gold_labels: np.ndarray,
    answers_of: Mapping[Path, np.ndarray],
    *,
    device: str,
) -> dict[str, Any]:
    """Return how the cascade in `folder` does on labeled test texts, an entry of `cascades` in report.json.

    `agreement` is with its last classifier, whose answers are computed if they are not in `answers_of`, by folder.
    `texts_per_second` is for all texts at once. `mean_ms` and `p95_ms` are for texts that come one by one. Both include
    tokenizing and are measured after a warm-up.
    """
    models, _, promise = read_cascade(folder)
    classifier = load(folder, device)
    assert isinstance(classifier, Cascade)
    columns = align_labels(classifier.label_names, label_names, teacher=str(folder))
    classifier.warm_up()
    classifier.logits(texts[:WARMUP_TEXTS])
    with progress_line(f"{folder.name}: test", len(texts), "text") as line:
        start = time.perf_counter()
        logits, answered_by = classifier.answers(texts, progress=line.update)
        rate = len(texts) / (time.perf_counter() - start)
    answers = logits[:, columns].argmax(axis=1)
    wanted = answers_of.get(models[-1].resolve())
    if wanted is None:
        last = classifier.classifiers[-1]
        order = align_labels(last.label_names, label_names, teacher=classifier.names[-1])
        with progress_line(f"{folder.name}: its last classifier", len(texts), "text") as line:
            wanted = last.logits(texts, progress=line.update)[:, order].argmax(axis=1)
    some = np.linspace(0, len(texts) - 1, min(len(texts), TIMED_ALONE)).round().astype(int)
    milliseconds = []
    with progress_line(f"{folder.name}: one by one", len(some), "text") as line:
        for text in some:
            start = time.perf_counter()
            classifier.logits([texts[text]])
            milliseconds.append(1_000 * (time.perf_counter() - start))
            line.update()
    agreed, right = int((answers == wanted).sum()), int((answers == gold_labels).sum())
    return {
        "folder": str(folder),
        "steps": [
            {"model": name, "format": step.format, "at_least": least, "answered": float((answered_by == index).mean())}
            for index, (name, step, least) in enumerate(
                zip(classifier.names, classifier.classifiers, [*classifier.thresholds[:-1], None], strict=True)
            )
        ],
        "promise": {name: promise[name] for name in ("agree", "accuracy_drop", "confidence", "texts")},
        "agreement": agreed / len(texts),
        "agreement_ci95": accuracy_interval(agreed, len(texts)),
        "accuracy": right / len(texts),
        "accuracy_ci95": accuracy_interval(right, len(texts)),
        "last_accuracy": float((wanted == gold_labels).mean()),
        "texts_per_second": rate,
        "mean_ms": float(np.mean(milliseconds)),
        "p95_ms": float(np.percentile(milliseconds, 95)),
        "examples": len(texts),
    }
