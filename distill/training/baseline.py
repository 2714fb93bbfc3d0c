"""Train the baseline: the simplest classifier that could work, and the yardstick for teacher and student."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import sklearn
from scipy.sparse import csr_matrix, vstack
from sklearn.linear_model import LogisticRegression

from distill.data.pairs import texts_of
from distill.data.splits import Splits, drawn, read_splits
from distill.inference.linear import AT_ONCE, BUCKETS, LinearClassifier, WordNgrams, counts
from distill.machine.devices import describe_hardware
from distill.machine.progress import progress_line
from distill.machine.provenance import now, versions
from distill.machine.timing import Clock
from distill.measuring.metrics import by_class, faults_of_answers, figures
from distill.models.weights import weights_fingerprint
from distill.recipe.schema import Recipe, with_absolute_paths
from distill.report.classes import tell_classes
from distill.storage.files import write_json
from distill.storage.lock import hold
from distill.storage.predictions import write_predictions
from distill.storage.run_folder import RunFolder
from distill.training.origin import origin_of, repeatable

log = logging.getLogger("distill")

STRENGTHS = (1.0, 10.0, 100.0)  # scikit-learn's C: the larger, the weaker the regularization
FEWEST_TEXTS = 2  # train texts with an n-gram; a rarer one says nothing about new texts
MOST_TEXTS = 100_000  # of train, drawn at random if there are more: the baseline must stay cheap in time and memory
MOST_ITERATIONS = 200
NEVER = -1e3  # the bias of a class without a train text


def train_baseline(recipe: Recipe, folder: RunFolder, *, resume: bool = False, overwrite: bool = False) -> RunFolder:
    """Train the baseline on the recipe's train split, choose it on validation, and return its run folder.

    It is a logistic regression on tf-idf weights of words and word pairs (see linear.WordNgrams).
    """
    recipe = with_absolute_paths(recipe)
    folder = folder.prepare(recipe, resume=resume, overwrite=overwrite)
    clock, final = Clock(), RunFolder(folder.final_path)
    with clock("data"):
        splits = read_splits(recipe)
    origin = origin_of(splits, "cpu") | {"scikit-learn": sklearn.__version__}
    with hold(final.path):
        folder.start(recipe, origin, resume=resume, overwrite=overwrite)
        classifier, training = _fitted(splits, recipe.data.seed, clock)
        classifier.save(folder.path)
        gold_labels = np.asarray(splits.test["label"][:])
        with clock("test"):
            logits = classifier.logits(texts_of(splits.test))
        write_predictions(folder.predictions, splits.test["example_id"][:], gold_labels, logits)
        test, faults = figures(logits, gold_labels), faults_of_answers(logits, gold_labels, splits.label_names)
        classes = by_class(logits, gold_labels, splits.label_names)
        found = {"test": test, "classes": classes, "warnings": faults, "training": training | clock.as_figures()}
        write_json(folder.metrics, found)
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
        tell_classes("baseline", classes)
        for fault in faults:
            log.warning("baseline: %s", fault)
    return final


def _fitted(splits: Splits, seed: int, clock: Clock) -> tuple[LinearClassifier, dict[str, Any]]:
    """The classifier that is best on validation, and what metrics.json says of its training."""
    with clock("reading"), progress_line("baseline: reading", min(len(splits.train), MOST_TEXTS), "text") as line:
        rows = splits.train if len(splits.train) <= MOST_TEXTS else drawn(splits.train, MOST_TEXTS, seed)
        labels = np.asarray(rows["label"][:])
        ngrams, features = fit_word_ngrams(rows["text"][:], progress=line.update)
        held_out = ngrams.features(splits.validation["text"][:])
    log.info("baseline: %d words and word pairs of %d train texts", len(ngrams.columns), len(labels))
    gold_labels = np.asarray(splits.validation["label"][:])
    with clock("training"), progress_line("baseline", len(STRENGTHS), "fit") as line:
        fits = {}
        for strength in STRENGTHS:
            fits[strength] = LogisticRegression(C=strength, max_iter=MOST_ITERATIONS).fit(features, labels)
            line.update(1)
    accuracies = {strength: float((fit.predict(held_out) == gold_labels).mean()) for strength, fit in fits.items()}
    best = fits[max(accuracies, key=lambda strength: accuracies[strength])]  # of equals the most regularized
    log.info("baseline: validation accuracy %s", ", ".join(f"{a:.4f} with C {c:g}" for c, a in accuracies.items()))
    found_weights, found_bias = best.coef_, best.intercept_
    if len(found_weights) == 1:  # scikit-learn keeps only the second of two classes
        found_weights, found_bias = (np.concatenate([-one, one]) / 2 for one in (found_weights, found_bias))
    weights = np.zeros((len(splits.label_names), len(ngrams.columns)), np.float32)
    bias = np.full(len(splits.label_names), NEVER, np.float32)
    weights[best.classes_], bias[best.classes_] = found_weights, found_bias
    tried = [{"C": strength, "validation_accuracy": accuracy} for strength, accuracy in accuracies.items()]
    training = {"texts": len(labels), "features": len(ngrams.columns), "selected_by": "accuracy", "tried": tried}
    return LinearClassifier(ngrams, weights, bias, splits.label_names), training


def fit_word_ngrams(
    texts: Sequence[str], *, progress: Callable[[int], object] = lambda done: None
) -> tuple[WordNgrams, csr_matrix]:
    """Return the n-grams that are in several of the train `texts`, and the texts' features (see WordNgrams)."""
    found = _counted(texts, progress)
    texts_with = np.bincount(found.indices, minlength=BUCKETS)
    columns = np.flatnonzero(texts_with >= FEWEST_TEXTS).astype(np.int32)
    if not len(columns):  # texts that share no words: one bucket that says nothing, so that the bias is fitted
        columns = np.zeros(1, np.int32)
    # As scikit-learn's TfidfTransformer: as if one more text held every n-gram.
    idf = (1 + np.log((1 + len(texts)) / (1 + texts_with[columns]))).astype(np.float32)
    ngrams = WordNgrams(columns, idf)
    return ngrams, ngrams.weighted(found)


def _counted(texts: Sequence[str], progress: Callable[[int], object]) -> Any:
    """Return `counts` of the texts, which `progress` is told part by part."""
    found = []
    for start in range(0, len(texts), AT_ONCE):
        found.append(counts(texts[start : start + AT_ONCE]))
        progress(found[-1].shape[0])
    return vstack(found, format="csr")
