"""Make a cascade of finished classifiers: measure each on validation, find thresholds that keep a promise, write it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.pairs import Text, texts_of
from distill.data.splits import Splits, gold_labels_of, read_splits, text_keys
from distill.decisions import softmax
from distill.errors import FolderError, ModelError, PromiseError
from distill.inference.cascade import Cascade
from distill.inference.classifier import device_of_step, fastest_export, load
from distill.inference.text_classifier import check_finite
from distill.machine.cpu import cores
from distill.machine.progress import progress_line
from distill.measuring.alignment import align
from distill.measuring.benchmark import WARMUP_TEXTS, timed_logits, torch_threads
from distill.measuring.metrics import accuracy_interval
from distill.measuring.promise import CONFIDENCE, Promise, Steps, cheapest_cascade
from distill.recipe.file import load_recipe
from distill.storage.cascades import MOST_STEPS, is_cascade, read_cascade, write_cascade
from distill.storage.checksums import ANSWERING, fingerprint
from distill.storage.contents import run_of
from distill.storage.exports import EXPORT_PROOFS
from distill.storage.lock import hold

log = logging.getLogger("distill")

TIMED_ALONE = 300  # test texts that are timed one by one
UNSEEN = "the validation texts were not among them, or the promise is not about new texts"
MOST_COPIES = 0.01  # share of the validation texts: a sample may hold a text twice by chance, but not often


def make_cascade(
    models: Sequence[Path], splits: Splits, output: Path, promise: Promise, *, device: str
) -> dict[str, Any]:
    """Write a cascade of the classifiers `models`, cheapest first, to `output`; return its cascade.json.

    The thresholds are found on the validation texts of `splits`, and `promise` says what they keep. A classifier that
    had better answer no text is left out. Raises `PromiseError` if the texts are too few to prove the promise, if no
    cascade is sure to keep it, or if that is not faster than the last classifier alone.
    """
    texts, gold_labels = texts_of(splits.validation), gold_labels_of(splits.validation)
    needed, distinct = promise.texts_needed(len(models)), len(set(text_keys(splits.validation)))
    if distinct < needed:
        different = "" if distinct == len(texts) else " different ones"
        raise PromiseError(
            f"cascade: that it {promise} takes at least {needed} validation texts to prove, and there are "
            f"{distinct}{different}",
            hint="a larger data.validation_fraction or validation file; or a weaker promise",
        )
    if len(texts) - distinct > MOST_COPIES * len(texts):
        log.warning(
            "cascade: %d of the %d validation texts are copies of others, and a copy proves nothing; so the promise is "
            "less sure than %.0f %%, unless new texts repeat as often",
            len(texts) - distinct, len(texts), 100 * CONFIDENCE,
        )  # fmt: skip
    fingerprints = [fingerprint(model, ANSWERING) for model in models]
    steps = steps_of(models, splits, texts, device=device)
    seconds = steps.seconds
    with progress_line("cascade: thresholds", None, "candidate") as line:
        found = cheapest_cascade(steps, gold_labels, promise, progress=line.update)
    if found is None:
        shares = (steps.answers[:-1] == steps.answers[-1]).mean(axis=1)
        raise PromiseError(
            f"cascade: no thresholds are sure to keep the promise that it {promise}; on their own, the others agree "
            f"with it on {' and '.join(f'{share:.2%}' for share in shares)} of {len(texts)} validation texts",
            hint="a weaker promise, more validation texts, or better students",
        )
    cost = steps.mean_seconds(found.thresholds)
    used = [index for index, threshold in enumerate([*found.thresholds, 0.0]) if np.isfinite(threshold)]
    if len(used) == 1 or cost >= seconds[-1]:
        raise PromiseError(
            f"cascade: the fastest one that {promise} reads {1 / cost:.1f} texts/s, and {models[-1]} alone "
            f"{1 / seconds[-1]:.1f}",
            hint="a weaker promise, more validation texts, or faster classifiers before the last one",
        )
    for index in set(range(len(models))) - set(used):
        log.info("cascade: without %s, which had better answer no text", models[index])
    of_tested, gold_labels = steps.of(found.tested), gold_labels[found.tested]
    answered_by, answers = of_tested.answered_by(found.thresholds), of_tested.answers_of(found.thresholds)
    right = int((answers == gold_labels).sum())
    promised = {
        "agree": promise.agree,
        "accuracy_drop": promise.accuracy_drop,
        "confidence": CONFIDENCE,
        "texts": len(found.tested),
        "ordering_texts": len(texts) - len(found.tested),
        "agreement": float((answers == of_tested.answers[-1]).mean()),
        "accuracy": right / len(found.tested),
        "accuracy_ci95": accuracy_interval(right, len(found.tested)),
        "last_accuracy": float((of_tested.answers[-1] == gold_labels).mean()),
        "answered": [float((answered_by == index).mean()) for index in used],
        "texts_per_second_alone": [1 / seconds[index] for index in used],
        "data": {"validation": splits.fingerprints["validation"]},
    }
    thresholds = [found.thresholds[index] for index in used[:-1]]
    with hold(output):
        return write_cascade(
            output, splits.label_names, splits.label_map, [models[index] for index in used],
            [fingerprints[index] for index in used], thresholds, promised,
        )  # fmt: skip


def steps_of(models: Sequence[Path], splits: Splits, texts: Sequence[Text], *, device: str) -> Steps:
    """Return what each of `models` answers to `texts`, with its classes in the order of `splits`, and how fast.

    Raises `ModelError` if a model may give a text several labels: no single probability says how sure it is of them.
    """
    logits, seconds = [], []
    for model in models:
        classifier = load(model, device_of_step(model, device))
        if classifier.thresholds is not None:
            raise ModelError(f"{model}: a cascade needs models that give a text one label")
        columns, _ = align(classifier, splits.label_names, splits.label_map, task=splits.task, name=str(model))
        with progress_line(f"{model.name}: answers", len(texts), "text") as line:
            found, rate = timed_logits(classifier, texts, progress=line.update)
        check_finite(found, str(model))
        logits.append(found[:, columns])
        seconds.append(1 / rate)
    confidence = np.stack([softmax(found).max(axis=1) for found in logits])
    return Steps(confidence, np.stack([found.argmax(axis=1) for found in logits]), seconds)


def classifiers_of(folders: Sequence[Path], device: str) -> list[Path]:
    """Return the folder of each classifier of a cascade; of a folder of exports, the one that was fastest.

    Raises `FolderError` if there are too few or too many, if one is there twice, or if one is itself a cascade.
    """
    if not 2 <= len(folders) <= MOST_STEPS:
        raise FolderError(f"cascade: wants 2 to {MOST_STEPS} classifiers, cheapest first, got {len(folders)}")
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


def check_unseen(models: Sequence[Path], splits: Splits) -> None:
    """Raise `FolderError` if a model was trained on some of the validation texts of `splits`.

    On these it is surer, and more often right, than on new texts. A run that has the same validation texts held them
    out. Logs a warning if it is not known what a model was trained on: it has no run folder, or the files of that have
    changed since.
    """
    held_out, checked = None, set[Path]()
    for model in models:
        run = run_of(model)
        if run is None or not run.is_finished:
            log.warning("cascade: %s: nothing says which texts it was trained on; make sure that %s", model, UNSEEN)
            continue
        if run.path in checked:
            continue
        checked.add(run.path)
        known = run.read_manifest().get("data", {})
        if known.get("validation") == splits.fingerprints["validation"]:
            continue
        held_out = held_out or set(text_keys(splits.validation))
        own = read_splits(load_recipe(run.recipe))
        if any(own.fingerprints.get(name) != known.get(name) for name in ("train", "transfer")):
            log.warning("cascade: %s: its training texts have changed since; make sure that %s", model, UNSEEN)
        trained = [rows for rows in (own.train, own.transfer) if rows is not None]
        seen = held_out.intersection(key for rows in trained for key in text_keys(rows))
        if seen:
            raise FolderError(
                f"{model}: was trained on {len(seen)} of the {len(splits.validation)} validation texts, so they cannot "
                "prove a promise about new texts",
                hint="train all classifiers of a cascade on one recipe's data; or name new texts: "
                "--set data.files.validation=FILE",
            )


def measure_cascade(
    folder: Path,
    splits: Splits,
    answers_of: Mapping[Path, np.ndarray],
    *,
    device: str,
    threads: int | None,
) -> dict[str, Any]:
    """Return how the cascade in `folder` does on the test texts of `splits`, an entry of `cascades` in report.json.

    `agreement` is with its last classifier, whose answers are computed if they are not in `answers_of`, by folder.
    `texts_per_second` is for all texts at once. `mean_ms` and `p95_ms` are for texts that come one by one. Both include
    tokenizing and are measured after a warm-up.
    """
    texts, gold_labels = texts_of(splits.test), gold_labels_of(splits.test)
    promise = read_cascade(folder).promise
    classifier = load(folder, device, threads=threads)
    assert isinstance(classifier, Cascade)
    columns, _ = align(classifier, splits.label_names, splits.label_map, task=splits.task, name=str(folder))
    with torch_threads(threads or cores()):
        classifier.warm_up()
        classifier.logits(texts[:WARMUP_TEXTS])
        with progress_line(f"{folder.name}: test", len(texts), "text") as line:
            start = time.perf_counter()
            logits, answered_by = classifier.answers(texts, progress=line.update)
            rate = len(texts) / (time.perf_counter() - start)
        some = np.linspace(0, len(texts) - 1, min(len(texts), TIMED_ALONE)).round().astype(int)
        milliseconds = []
        with progress_line(f"{folder.name}: one by one", len(some), "text") as line:
            for text in some:
                start = time.perf_counter()
                classifier.logits([texts[text]])
                milliseconds.append(1_000 * (time.perf_counter() - start))
                line.update()
    answers = logits[:, columns].argmax(axis=1)
    wanted = answers_of.get(Path(classifier.names[-1]))
    if wanted is None:
        last = classifier.classifiers[-1]
        order, _ = align(last, splits.label_names, splits.label_map, task=splits.task, name=classifier.names[-1])
        with progress_line(f"{folder.name}: its last classifier", len(texts), "text") as line:
            wanted = last.logits(texts, progress=line.update)[:, order].argmax(axis=1)
    agreed, right = int((answers == wanted).sum()), int((answers == gold_labels).sum())
    return {
        "folder": str(folder),
        "steps": [
            {"model": name, "format": step.format, "at_least": least, "answered": float((answered_by == index).mean())}
            for index, (name, step, least) in enumerate(
                zip(classifier.names, classifier.classifiers, [*classifier.sure_from[:-1], None], strict=True)
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
