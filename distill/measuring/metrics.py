"""Logits and gold labels to figures, through evaluate's API and without a download."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import datasets
import evaluate
import numpy as np
from scipy.special import softmax
from scipy.stats import binomtest, bootstrap, chi2_contingency, fisher_exact
from sklearn.metrics import confusion_matrix, f1_score, log_loss, roc_auc_score

from distill.models.calibration import expected_calibration_error
from distill.report.choice import SIGNIFICANT

CLASSES_NAMED = 5  # in a sentence
RESAMPLES = 10_000
RESAMPLED_AT_ONCE = 2**22  # indices that the bootstrap holds, 32 MiB of them, however many examples there are


class PairedComparison(TypedDict):
    """How a classifier stands against its control on the same examples; `gain` is a fraction, not percentage points."""

    examples: int
    gain: float
    gain_ci95: list[float]
    p_value: float
    only_first_correct: int
    only_second_correct: int


class ClassificationMetrics(evaluate.Metric):
    """Accuracy, macro-F1, ROC-AUC, log loss, calibration error and Brier score of logits (examples, classes).

    A metric inside a package: `evaluate.load("accuracy")` would download its script.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Figures of a single-label classifier, computed from its logits.",
            citation="",
            inputs_description="predictions: logits (examples, classes); references: gold class indices (examples,).",
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float | None]:
        logits, gold = np.asarray(predictions, dtype=np.float64), np.asarray(references)
        classes = logits.shape[1]
        probabilities = softmax(logits, axis=1)
        predicted = logits.argmax(axis=1)
        return {
            "accuracy": float((predicted == gold).mean()),
            "macro_f1": float(f1_score(gold, predicted, labels=range(classes), average="macro", zero_division=0)),
            "roc_auc": _roc_auc(probabilities, gold),
            "log_loss": float(log_loss(gold, probabilities, labels=range(classes))),
            "ece": expected_calibration_error(probabilities, gold),
            "brier": brier_score(probabilities, gold),
        }


def figures(logits: np.ndarray, gold_labels: np.ndarray) -> dict[str, Any]:
    """Return the `test` section of metrics.json: number of examples and every figure, accuracy with its 95 % interval.

    `logits` is (examples, classes), `gold_labels` (examples,). ROC-AUC is None where a class has no example.
    """
    metric = ClassificationMetrics(keep_in_memory=True)
    values: Any = metric.compute(predictions=logits.astype(np.float32), references=gold_labels)
    interval = accuracy_interval(int((logits.argmax(axis=1) == gold_labels).sum()), len(gold_labels))
    return {
        "examples": len(gold_labels),
        "accuracy": values["accuracy"],
        "accuracy_ci95": interval,
        **{name: value for name, value in values.items() if name != "accuracy"},
    }


def accuracy_interval(correct: int, examples: int) -> list[float]:
    """Return the Wilson 95 % interval of `correct` out of `examples` as [low, high] (Wilson 1927; by scipy)."""
    interval = binomtest(correct, examples).proportion_ci(0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def confusion(logits: np.ndarray, gold_labels: np.ndarray) -> list[list[int]]:
    """Return how many examples of each gold class (row) got each answer (column); `logits` is (examples, classes)."""
    return confusion_matrix(gold_labels, logits.argmax(axis=1), labels=range(logits.shape[1])).tolist()


def brier_score(probabilities: np.ndarray, gold_labels: np.ndarray) -> float:
    """Return the mean squared distance between probabilities and the gold class's one-hot row (Brier 1950).

    `probabilities` is (examples, classes). 0 is best; 2, sure and wrong every time, is worst.
    """
    one_hot = np.eye(probabilities.shape[1])[gold_labels]
    return float(((probabilities - one_hot) ** 2).sum(axis=1).mean())


def compare_paired(correct: np.ndarray, control_correct: np.ndarray, *, seed: int = 0) -> PairedComparison:
    """Return what a classifier gained in accuracy over its control, and how sure that is.

    Both arguments say of the same examples, in the same order, whether the answer was right. The p-value is that of
    McNemar's test, exact (McNemar 1947): among the examples that only one of the two got right, each is as likely to be
    the one where nothing was gained. The 95 % interval is the percentile bootstrap over examples, a pair drawn as one
    (Efron & Tibshirani 1993, section 13.3).
    """
    difference = correct.astype(np.int8) - control_correct.astype(np.int8)
    first, second = int((difference > 0).sum()), int((difference < 0).sum())
    gain = float(difference.mean())
    interval = [gain, gain]  # what every resample of a single example gives; scipy wants two
    if len(difference) > 1:
        found = bootstrap(
            (difference,),
            np.mean,
            n_resamples=RESAMPLES,
            batch=max(1, RESAMPLED_AT_ONCE // len(difference)),
            method="percentile",
            random_state=np.random.default_rng(seed),
        ).confidence_interval
        interval = [float(found.low), float(found.high)]
    return {
        "examples": len(difference),
        "gain": gain,
        "gain_ci95": interval,
        "p_value": float(binomtest(first, first + second).pvalue) if first + second else 1.0,
        "only_first_correct": first,
        "only_second_correct": second,
    }


def chance_p_value(answers: np.ndarray, gold_labels: np.ndarray) -> float:
    """Return the p-value of `answers` having nothing to do with `gold_labels`, both classes of shape (examples,).

    For two classes by Fisher's exact test, for more by the chi-squared test of independence; both by scipy. Unlike
    accuracy it tells a model that learned a rare class from one that learned nothing. 1 if one class is all there is.
    """
    table = np.zeros((answers.max() + 1, gold_labels.max() + 1), int)
    np.add.at(table, (answers, gold_labels), 1)
    table = table[table.any(axis=1)][:, table.any(axis=0)]
    if min(table.shape) < 2:
        return 1.0
    return float((fisher_exact if table.shape == (2, 2) else chi2_contingency)(table).pvalue)


def commonest_share(gold_labels: np.ndarray) -> float:
    """Return the share of the commonest class among `gold_labels` (examples,): what answering it always would get."""
    return float(np.bincount(gold_labels).max() / len(gold_labels))


def faults_of_answers(logits: np.ndarray, gold_labels: np.ndarray, label_names: Sequence[str]) -> list[str]:
    """Return in words what is wrong with a classifier's answers as a whole; empty if nothing is.

    `logits` is (examples, classes), `gold_labels` (examples,). Said are: one answer for every text; an accuracy not
    above the commonest class's share; answers that may be chance (p not below 0.05); classes that are never answered
    though test texts have them.
    """
    answers, sizes = logits.argmax(axis=1), np.bincount(gold_labels, minlength=len(label_names))
    accuracy, commonest = float((answers == gold_labels).mean()), commonest_share(gold_labels)
    if commonest == 1:
        return [f"was tested on texts of {label_names[sizes.argmax()]} alone, which say nothing of the other classes"]
    if (answers == answers[0]).all() and len(answers) > 1:
        return [f"answers {label_names[answers[0]]} for every one of {len(answers)} test texts"]
    said = []
    if accuracy <= commonest:
        said.append(
            f"is no better than always answering the commonest class: test accuracy {accuracy:.4f}, which "
            f"{label_names[sizes.argmax()]} alone would give {commonest:.4f}"
        )
    elif (p_value := chance_p_value(answers, gold_labels)) >= SIGNIFICANT:
        said.append(f"may answer by chance: nothing that {len(answers)} test texts can tell (p = {p_value:.2f})")
    answered = np.bincount(answers, minlength=len(label_names))
    never = sorted(np.flatnonzero((answered == 0) & (sizes > 0)), key=lambda index: -sizes[index])
    if never:
        shown = [f"{label_names[index]} (of {sizes[index]} test texts)" for index in never[:CLASSES_NAMED]]
        more = f" and {len(never) - CLASSES_NAMED} classes more" if len(never) > CLASSES_NAMED else ""
        said.append(f"never answers {', '.join(shown)}{more}")
    return said


def agreement(logits: np.ndarray, reference_logits: np.ndarray) -> float:
    """Return the share of examples on which both give the same class; arguments are (examples, classes)."""
    return float((logits.argmax(axis=1) == reference_logits.argmax(axis=1)).mean())


def _roc_auc(probabilities: np.ndarray, gold: np.ndarray) -> float | None:
    """Area under the ROC curve: of the second class of two, else the macro mean of one against the rest."""
    classes = probabilities.shape[1]
    if len(np.unique(gold)) < classes:
        return None
    if classes == 2:
        return float(roc_auc_score(gold, probabilities[:, 1]))
    return float(roc_auc_score(gold, probabilities, multi_class="ovr", average="macro", labels=range(classes)))
