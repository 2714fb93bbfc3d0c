"""Compute figures from logits and gold labels, with evaluate's API but without a download."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import datasets
import evaluate
import numpy as np
from scipy.special import softmax
from scipy.stats import binomtest, bootstrap, chi2_contingency, fisher_exact
from scipy.stats.contingency import crosstab
from sklearn.metrics import confusion_matrix, f1_score, log_loss, precision_recall_fscore_support, roc_auc_score

from distill.models.calibration import expected_calibration_error
from distill.report.choice import SIGNIFICANT

CLASSES_NAMED = 5  # in a sentence
RESAMPLES = 10_000
RESAMPLED_AT_ONCE = 2**22  # indices in memory during the bootstrap (32 MiB), for any number of examples


class PairedComparison(TypedDict):
    """A classifier against its control on the same examples; `gain` is a fraction of 1, not percentage points."""

    examples: int
    gain: float
    gain_ci95: list[float]
    p_value: float
    only_first_correct: int
    only_second_correct: int


class ClassificationMetrics(evaluate.Metric):
    """Accuracy, macro-F1, ROC-AUC, log loss, calibration error and Brier score of logits (examples, classes).

    It is a class of its own because `evaluate.load("accuracy")` would download a script.
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

    `logits` is (examples, classes), `gold_labels` (examples,). ROC-AUC is None if a class has no example.
    """
    metric = ClassificationMetrics(keep_in_memory=True)
    values: Any = metric.compute(predictions=logits.astype(np.float32), references=gold_labels)
    interval = accuracy_interval(int((logits.argmax(axis=1) == gold_labels).sum()), len(gold_labels))
    return {"examples": len(gold_labels), "accuracy": values.pop("accuracy"), "accuracy_ci95": interval, **values}


def by_class(logits: np.ndarray, gold_labels: np.ndarray, label_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return precision, recall, F1 and ROC-AUC of each class against the rest, and its number of examples.

    `logits` is (examples, classes), `gold_labels` (examples,). Precision is 0 for a class that is never answered, and
    recall 0 for one without examples. ROC-AUC is None if a class has no example, or all of them.
    """
    classes = range(len(label_names))
    probabilities, answers = softmax(logits, axis=1), logits.argmax(axis=1)
    found: Any = precision_recall_fscore_support(gold_labels, answers, labels=classes, zero_division=0)
    precision, recall, f1, examples = found
    return [
        {
            "class": label_names[index],
            "examples": int(examples[index]),
            "precision": float(precision[index]),
            "recall": float(recall[index]),
            "f1": float(f1[index]),
            "roc_auc": _auc_of(gold_labels == index, probabilities[:, index]),
        }
        for index in classes
    ]


def accuracy_interval(correct: int, examples: int) -> list[float]:
    """Return the Wilson 95 % interval of `correct` out of `examples` as [low, high] (Wilson 1927; by scipy)."""
    return list(map(float, binomtest(correct, examples).proportion_ci(0.95, method="wilson")))


def confusion(logits: np.ndarray, gold_labels: np.ndarray) -> list[list[int]]:
    """Return the confusion matrix, gold classes in rows and answers in columns; `logits` is (examples, classes)."""
    return confusion_matrix(gold_labels, logits.argmax(axis=1), labels=range(logits.shape[1])).tolist()


def brier_score(probabilities: np.ndarray, gold_labels: np.ndarray) -> float:
    """Return the mean squared distance between probabilities and the gold class's one-hot row (Brier 1950).

    `probabilities` is (examples, classes). 0 is best; 2 is worst: sure of a wrong class every time.
    """
    one_hot = np.eye(probabilities.shape[1])[gold_labels]
    return float(((probabilities - one_hot) ** 2).sum(axis=1).mean())


def compare_paired(correct: np.ndarray, control_correct: np.ndarray, *, seed: int = 0) -> PairedComparison:
    """Return a classifier's gain in accuracy over its control, with its 95 % interval and p-value.

    Both arguments say whether each answer was right, for the same examples in the same order. The p-value is from
    McNemar's exact test (McNemar 1947). Its null hypothesis: if only one of the two is right on an example, it is
    equally likely to be either. The 95 % interval is the percentile bootstrap over examples, with both answers of an
    example drawn together (Efron & Tibshirani 1993, section 13.3).
    """
    difference = correct.astype(np.int8) - control_correct.astype(np.int8)
    first, second = int((difference > 0).sum()), int((difference < 0).sum())
    gain = float(difference.mean())
    interval = [gain, gain]  # a single example, which scipy does not resample
    if len(difference) > 1:
        found = bootstrap(
            (difference,),
            np.mean,
            n_resamples=RESAMPLES,
            batch=max(1, RESAMPLED_AT_ONCE // len(difference)),
            method="percentile",
            random_state=np.random.default_rng(seed),
        ).confidence_interval
        interval = list(map(float, found))
    return {
        "examples": len(difference),
        "gain": gain,
        "gain_ci95": interval,
        "p_value": float(binomtest(first, first + second).pvalue) if first + second else 1.0,
        "only_first_correct": first,
        "only_second_correct": second,
    }


def chance_p_value(answers: np.ndarray, gold_labels: np.ndarray) -> float:
    """Return the p-value for `answers` that are independent of `gold_labels`, both class indices (examples,).

    Two classes are tested by Fisher's exact test, more by the chi-squared test of independence. Unlike accuracy, this
    distinguishes a model that learned a rare class from one that learned nothing. It is 1 if all answers or all labels
    are the same.
    """
    table = crosstab(answers, gold_labels).count
    if min(table.shape) < 2:
        return 1.0
    return float((fisher_exact if table.shape == (2, 2) else chi2_contingency)(table).pvalue)


def commonest_share(gold_labels: np.ndarray) -> float:
    """Return the share of the commonest class in `gold_labels` (examples,): the accuracy of always answering it."""
    return float(np.bincount(gold_labels).max() / len(gold_labels))


def faults_of_answers(logits: np.ndarray, gold_labels: np.ndarray, label_names: Sequence[str]) -> list[str]:
    """Return in words what is wrong with a classifier's answers as a whole; empty if nothing is.

    `logits` is (examples, classes), `gold_labels` (examples,). The faults are: one answer for every text; an accuracy
    not above the commonest class's share; answers that may be chance (p not below 0.05); and classes of test texts that
    are never answered.
    """
    answers, sizes = logits.argmax(axis=1), np.bincount(gold_labels, minlength=len(label_names))
    accuracy, commonest = float((answers == gold_labels).mean()), commonest_share(gold_labels)
    if commonest == 1:
        return [f"was tested only on texts of {label_names[sizes.argmax()]}; nothing is known about the other classes"]
    if (answers == answers[0]).all() and len(answers) > 1:
        return [f"answers {label_names[answers[0]]} for every one of {len(answers)} test texts"]
    said = []
    if accuracy <= commonest:
        said.append(
            f"is no better than always answering the commonest class: test accuracy {accuracy:.4f}, against "
            f"{commonest:.4f} for {label_names[sizes.argmax()]}"
        )
    elif (p_value := chance_p_value(answers, gold_labels)) >= SIGNIFICANT:
        said.append(f"may answer by chance: not significant with {len(answers)} test texts (p = {p_value:.2f})")
    answered = np.bincount(answers, minlength=len(label_names))
    never = sorted(np.flatnonzero((answered == 0) & (sizes > 0)), key=lambda index: -sizes[index])
    if never:
        shown = [f"{label_names[index]} (of {sizes[index]} test texts)" for index in never[:CLASSES_NAMED]]
        more = f" and {len(never) - CLASSES_NAMED} more classes" if len(never) > CLASSES_NAMED else ""
        said.append(f"never answers {', '.join(shown)}{more}")
    return said


def agreement(logits: np.ndarray, reference_logits: np.ndarray) -> float:
    """Return the share of examples to which both give the same class; both arguments are (examples, classes)."""
    return float((logits.argmax(axis=1) == reference_logits.argmax(axis=1)).mean())


def _roc_auc(probabilities: np.ndarray, gold: np.ndarray) -> float | None:
    """Return the area under the ROC curve: of the second of two classes, else the macro mean of one-vs-rest."""
    classes = probabilities.shape[1]
    if len(np.unique(gold)) < classes:
        return None
    if classes == 2:
        return _auc_of(gold == 1, probabilities[:, 1])
    return float(roc_auc_score(gold, probabilities, multi_class="ovr", average="macro", labels=range(classes)))


def _auc_of(is_class: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Return the area under the ROC curve of one class; None if all or no examples are of it."""
    if is_class.all() or not is_class.any():
        return None
    return float(roc_auc_score(is_class, probabilities))
