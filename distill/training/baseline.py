"""Train the baseline: the simplest classifier that could work, and the yardstick for teacher and student."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import sklearn
from scipy.sparse import csr_matrix, vstack
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from distill.data.pairs import is_pair, texts_of
from distill.data.splits import Splits, drawn, gold_labels_of, read_splits
from distill.decisions import answers_of, scores_of
from distill.inference.linear import AT_ONCE, BUCKETS, LinearClassifier, WordNgrams, counts
from distill.machine.devices import describe_hardware
from distill.machine.progress import progress_line
from distill.machine.provenance import now, versions
from distill.machine.timing import Clock
from distill.measuring.metrics import by_class, faults_of_answers, figures, in_a_line
from distill.models.thresholds import choose_thresholds
from distill.models.truncation import Reads
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
        gold_labels, thresholds = gold_labels_of(splits.test), classifier.thresholds
        with clock("test"):
            logits = classifier.logits(texts_of(splits.test))
        write_predictions(folder.predictions, splits.test["example_id"][:], gold_labels, logits, thresholds)
        test = figures(logits, gold_labels, thresholds)
        faults = faults_of_answers(logits, gold_labels, splits.label_names, thresholds)
        classes = by_class(logits, gold_labels, splits.label_names, thresholds)
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
                "task": splits.task,
                "data": splits.fingerprints,
                "leaks_dropped": dict(splits.leaks),
                "weights": weights_fingerprint(str(folder.path)),
                "parents": {},
            }
        )
        log.info("baseline: test %s, on %d texts; saved in %s", in_a_line(test), test["examples"], final.path)
        tell_classes("baseline", classes)
        for fault in faults:
            log.warning("baseline: %s", fault)
    return final


def _fitted(splits: Splits, seed: int, clock: Clock) -> tuple[LinearClassifier, dict[str, Any]]:
    """The classifier that is best on validation, and what metrics.json says of its training."""
    with clock("reading"), progress_line("baseline: reading", min(len(splits.train), MOST_TEXTS), "text") as line:
        rows = splits.train if len(splits.train) <= MOST_TEXTS else drawn(splits.train, MOST_TEXTS, seed)
        labels = gold_labels_of(rows)
        ngrams, features = fit_word_ngrams(rows["text"][:], progress=line.update)
        held_out = ngrams.features(splits.validation["text"][:])
    log.info("baseline: %d words and word pairs of %d train texts", len(ngrams.columns), len(labels))
    gold_labels, names = gold_labels_of(splits.validation), splits.label_names
    reads: Reads = "pairs" if is_pair(rows["text"][0]) else "texts"
    found: dict[float, LinearClassifier] = {}
    accuracies: dict[float, float] = {}
    with clock("training"), progress_line("baseline", len(STRENGTHS), "fit") as line:
        for strength in STRENGTHS:
            weights, bias = fit_linear(features, labels, len(names), strength)
            logits, thresholds = held_out @ weights.T + bias, None
            if splits.task == "multi_label":
                thresholds = choose_thresholds(expit(logits), gold_labels)
            found[strength] = LinearClassifier(ngrams, weights, bias, names, thresholds, reads=reads)
            accuracies[strength] = float(scores_of(answers_of(logits, thresholds), gold_labels).mean())
            line.update(1)
    selected_by = "accuracy" if splits.task == "single_label" else "f1 per text"
    shown = ", ".join(f"{accuracy:.4f} with C {strength:g}" for strength, accuracy in accuracies.items())
    log.info("baseline: validation %s %s", selected_by, shown)
    best = max(accuracies, key=lambda strength: accuracies[strength])  # of equals the most regularized
    tried = [{"C": strength, "validation_accuracy": accuracy} for strength, accuracy in accuracies.items()]
    training = {"texts": len(labels), "features": len(ngrams.columns), "selected_by": selected_by, "tried": tried}
    return found[best], training


def fit_linear(
    features: csr_matrix, labels: np.ndarray, classes: int, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights (classes, features) and biases (classes,) of a logistic regression, both float32.

    `labels` are class indices (texts,), or 0 and 1 (texts, classes) if a text may have several labels; each label then
    has a regression of its own. A class that no text has is never answered, and a label that all have always.
    """
    weights, bias = np.zeros((classes, features.shape[1]), np.float32), np.full(classes, NEVER, np.float32)
    if labels.ndim == 2:
        for label, has_label in enumerate(labels.T):
            if has_label.all():
                bias[label] = -NEVER
            elif has_label.any():
                one = LogisticRegression(C=strength, max_iter=MOST_ITERATIONS).fit(features, has_label)
                weights[label], bias[label] = one.coef_[0], one.intercept_[0]
        return weights, bias
    fit = LogisticRegression(C=strength, max_iter=MOST_ITERATIONS).fit(features, labels)
    found_weights, found_bias = fit.coef_, fit.intercept_
    if len(found_weights) == 1:  # scikit-learn keeps only the second of two classes
        found_weights, found_bias = (np.concatenate([-one, one]) / 2 for one in (found_weights, found_bias))
    weights[fit.classes_], bias[fit.classes_] = found_weights, found_bias
    return weights, bias


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
