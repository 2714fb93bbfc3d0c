"""Train the baseline: the simplest classifier that could work, and the yardstick for teacher and student."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import sklearn
from scipy.sparse import vstack
from sklearn.linear_model import LogisticRegression

from distill.data.splits import Splits, read_splits
from distill.inference.ngrams import AT_ONCE, BUCKETS, NgramClassifier, Ngrams, counts
from distill.machine.devices import describe_hardware
from distill.machine.progress import progress_line
from distill.machine.provenance import now, versions
from distill.machine.timing import Clock
from distill.measuring.metrics import faults_of_answers, figures
from distill.models.weights import weights_fingerprint
from distill.recipe.schema import Recipe, with_absolute_paths
from distill.storage.files import write_json
from distill.storage.lock import hold
from distill.storage.predictions import write_predictions
from distill.storage.run_folder import RunFolder
from distill.training.origin import origin_of, repeatable

log = logging.getLogger("distill")

STRENGTHS = (1.0, 10.0, 100.0)  # scikit-learn's C: the larger, the weaker the regularization
FEWEST_TEXTS = 2  # of train that an n-gram stands in; others say nothing of new texts
MOST_ITERATIONS = 200


def train_baseline(recipe: Recipe, folder: RunFolder, *, resume: bool = False, overwrite: bool = False) -> RunFolder:
    """Train the baseline on the recipe's train split, choose it on validation, and return its run folder.

    It is a logistic regression on tf-idf weights of words and word pairs (see ngrams.Ngrams).
    """
    recipe = with_absolute_paths(recipe)
    folder = folder.prepare(recipe, resume=resume, overwrite=overwrite)
    clock, final = Clock(), RunFolder(folder.final_path)
    with clock("data"):
        splits = read_splits(recipe)
    origin = origin_of(splits, "cpu") | {"scikit-learn": sklearn.__version__}
    with hold(final.path):
        folder.start(recipe, origin, resume=resume, overwrite=overwrite)
        classifier, tried = _fitted(splits, clock)
        classifier.save(folder.path)
        gold_labels = np.asarray(splits.test["label"][:])
        with clock("test"):
            logits = classifier.logits(splits.test["text"][:])
        write_predictions(folder.predictions, splits.test["example_id"][:], gold_labels, logits)
        test, faults = figures(logits, gold_labels), faults_of_answers(logits, gold_labels, splits.label_names)
        features = len(classifier.ngrams.columns)
        training = {"selected_by": "accuracy", "tried": tried, "features": features, **clock.as_figures()}
        write_json(folder.metrics, {"test": test, "warnings": faults, "training": training})
        folder.finish(
            {
                "role": "baseline",
                "finished": now(),
                "versions": {**versions(), "scikit-learn": sklearn.__version__},
                "hardware": describe_hardware(),
                "device": "cpu",
                "repeatable": repeatable("cpu", folder.processors),
                "labels": list(splits.label_names),
                "data": splits.fingerprints,
                "leaks_dropped": dict(splits.leaks),
                "weights": weights_fingerprint(str(folder.path)),
                "parents": {},
            }
        )
        log.info(
            "baseline: test accuracy %.4f (95 %% interval %.4f to %.4f), macro-F1 %.4f, on %d texts; saved in %s",
            test["accuracy"], *test["accuracy_ci95"], test["macro_f1"], test["examples"], final.path,
        )  # fmt: skip
        for fault in faults:
            log.warning("baseline: %s", fault)
    return final


def _fitted(splits: Splits, clock: Clock) -> tuple[NgramClassifier, list[dict[str, Any]]]:
    """The classifier that is best on validation, and each strength that was tried with its validation accuracy."""
    labels = np.asarray(splits.train["label"][:])
    with clock("reading"), progress_line("baseline: reading", len(splits.train), "text") as line:
        found = _counted(splits.train["text"][:], line.update)
        texts_with = np.bincount(found.indices, minlength=BUCKETS)
        columns = np.flatnonzero(texts_with >= min(FEWEST_TEXTS, len(labels))).astype(np.int32)
        # As scikit-learn's TfidfTransformer: as if one more text held every n-gram.
        idf = (1 + np.log((1 + len(labels)) / (1 + texts_with[columns]))).astype(np.float32)
        ngrams = Ngrams(columns, idf)
        features = ngrams.weighted(found)
        held_out = ngrams.features(splits.validation["text"][:])
    gold_labels = np.asarray(splits.validation["label"][:])
    log.info("baseline: %d words and word pairs of %d train texts", len(columns), len(labels))
    tried, best = [], None
    with clock("training"), progress_line("baseline", len(STRENGTHS), "fit") as line:
        for strength in STRENGTHS:
            model = LogisticRegression(C=strength, max_iter=MOST_ITERATIONS).fit(features, labels)
            accuracy = float((model.predict(held_out) == gold_labels).mean())
            tried.append({"C": strength, "validation_accuracy": accuracy})
            if best is None or accuracy > max(one["validation_accuracy"] for one in tried[:-1]):
                best = model
            line.update(1)
    assert best is not None
    weights, bias = best.coef_, best.intercept_
    if len(weights) == 1:  # of two classes scikit-learn has the second one's alone
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    log.info("baseline: validation accuracy %s", ", ".join(
        f"{one['validation_accuracy']:.4f} with C {one['C']:g}" for one in tried
    ))  # fmt: skip
    return NgramClassifier(ngrams, weights.astype(np.float32), bias.astype(np.float32), splits.label_names), tried


def _counted(texts: Sequence[str], progress: Any) -> Any:
    def parts() -> Iterator[Any]:
        for start in range(0, len(texts), AT_ONCE):
            part = texts[start : start + AT_ONCE]
            yield counts(part)
            progress(len(part))

    return vstack(list(parts()), format="csr")
