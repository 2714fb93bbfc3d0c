"""Compute figures from logits and gold labels, with evaluate's API but without a download.

A text has one label, or several (see decisions.py): then `thresholds` are given, and gold labels are a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict

import datasets
import evaluate
import numpy as np
from scipy.special import softmax
from scipy.stats import binomtest, bootstrap, chi2_contingency, fisher_exact
from scipy.stats.contingency import crosstab
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score, log_loss, roc_auc_score

from distill.decisions import (
    Thresholds,
    answers_of,
    are_equal,
    as_matrix,
    as_two_classes,
    in_words,
    probabilities_of,
    scores_of,
)
from distill.models.calibration import expected_calibration_error
from distill.models.thresholds import DEFAULT
from distill.report.choice import SIGNIFICANT
from distill.storage.predictions import Predictions

CLASSES_NAMED = 5  # in a sentence
RESAMPLES = 10_000
RESAMPLED_AT_ONCE = 2**22  # indices in memory during the bootstrap (32 MiB), for any number of examples
SIGN_FLIPS = 9_999  # with the gain that was found, 10,000
Measure = Literal["accuracy", "f1"]


class PairedComparison(TypedDict):
    """A classifier against its control on the same examples; `gain` is a fraction of 1, not percentage points.

    `measure` says of what: of accuracy, or of the F1 of a text's labels, which is then between 0 and 1 for each text.
    """

    examples: int
    measure: Measure
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


def figures(logits: np.ndarray, gold_labels: np.ndarray, thresholds: Thresholds = None) -> dict[str, Any]:
    """Return the `test` section of metrics.json: number of examples and every figure, accuracy with its 95 % interval.

    `logits` is (examples, classes). If a text may have several labels, accuracy is the share of texts with exactly the
    right ones; ROC-AUC and average precision are the means over the labels that some texts have and some lack, and None
    if there are none; log loss, ECE and Brier score are about the question "does it have the label?" for each text and
    label. With one label a text, ROC-AUC is None if a class has no example.
    """
    values = _values(logits, gold_labels, thresholds)
    interval = accuracy_interval(int(are_equal(answers_of(logits, thresholds), gold_labels).sum()), len(gold_labels))
    return {"examples": len(gold_labels), "accuracy": values.pop("accuracy"), "accuracy_ci95": interval, **values}


def validation_figures(logits: np.ndarray, gold_labels: np.ndarray) -> dict[str, float]:
    """Return the figures of an evaluation during training, without those that are None.

    The thresholds of labels are chosen after training, so here each is 0.5.
    """
    thresholds = None if gold_labels.ndim == 1 else (DEFAULT,) * logits.shape[1]
    return {name: value for name, value in _values(logits, gold_labels, thresholds).items() if value is not None}


def _values(logits: np.ndarray, gold_labels: np.ndarray, thresholds: Thresholds) -> dict[str, Any]:
    if thresholds is None:
        metric = ClassificationMetrics(keep_in_memory=True)
        found: Any = metric.compute(predictions=logits.astype(np.float32), references=gold_labels)
        return found
    logits, has_label = logits.astype(np.float64), gold_labels.astype(bool)
    answers = answers_of(logits, thresholds)
    labels = by_class(logits, has_label, list(map(str, range(logits.shape[1]))), thresholds)
    two_logits, two_classes = as_two_classes(logits, has_label)
    probabilities = softmax(two_logits, axis=1)
    given = int(answers.sum(dtype=np.int64) + has_label.sum())
    return {
        "accuracy": float(are_equal(answers, has_label).mean()),
        "f1_per_text": float(scores_of(answers, has_label).mean()),
        "micro_f1": 2 * int((answers & has_label).sum()) / max(1, given),
        "macro_f1": float(np.mean([label["f1"] for label in labels])),
        "mean_average_precision": _mean(label["average_precision"] for label in labels),
        "roc_auc": _mean(label["roc_auc"] for label in labels),
        "log_loss": float(np.logaddexp(0, np.where(has_label, -logits, logits)).mean()),
        "ece": expected_calibration_error(probabilities, two_classes),
        "brier": brier_score(probabilities, two_classes),
    }


def in_a_line(found: Mapping[str, Any]) -> str:
    """Return the main figures of `figures` as text, such as "accuracy 0.9000 (95 % interval ...)" and so on."""
    measure, (low, high) = "exact match" if "micro_f1" in found else "accuracy", found["accuracy_ci95"]
    micro = f"micro-F1 {found['micro_f1']:.4f}, " if "micro_f1" in found else ""
    return (
        f"{measure} {found['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}), {micro}macro-F1 "
        f"{found['macro_f1']:.4f}"
    )


def by_class(
    logits: np.ndarray, gold_labels: np.ndarray, label_names: Sequence[str], thresholds: Thresholds = None
) -> list[dict[str, Any]]:
    """Return precision, recall, F1 and ROC-AUC of each class against the rest, and its number of examples.

    `logits` is (examples, classes). Precision is 0 for a class that is never answered, and recall 0 for one without
    examples. ROC-AUC is None if a class has no example, or all of them. If a text may have several labels, each also
    has its average precision, None in the same cases, and its threshold.
    """
    count = len(label_names)
    # A sigmoid rounds large logits to 1, where texts would no longer be ranked.
    ranked = probabilities_of(logits, None) if thresholds is None else logits
    is_gold, is_answer = as_matrix(gold_labels, count), as_matrix(answers_of(logits, thresholds), count)
    right, answered, examples = ((is_gold & is_answer).sum(axis=0), is_answer.sum(axis=0), is_gold.sum(axis=0))
    found = []
    for index, name in enumerate(label_names):
        one = {
            "class": name,
            "examples": int(examples[index]),
            "precision": float(right[index] / max(1, answered[index])),
            "recall": float(right[index] / max(1, examples[index])),
            "f1": float(2 * right[index] / max(1, answered[index] + examples[index])),
            "roc_auc": _of_both_kinds(roc_auc_score, is_gold[:, index], ranked[:, index]),
        }
        if thresholds is not None:
            one["average_precision"] = _of_both_kinds(average_precision_score, is_gold[:, index], ranked[:, index])
            one["threshold"] = float(thresholds[index])
        found.append(one)
    return found


def accuracy_interval(correct: int, examples: int) -> list[float]:
    """Return the Wilson 95 % interval of `correct` out of `examples` as [low, high] (Wilson 1927; by scipy)."""
    return list(map(float, binomtest(correct, examples).proportion_ci(0.95, method="wilson")))


def confusion(logits: np.ndarray, gold_labels: np.ndarray) -> list[list[int]]:
    """Return the confusion matrix, gold classes in rows and answers in columns; `logits` is (examples, classes).

    It is for texts with one label.
    """
    return confusion_matrix(gold_labels, logits.argmax(axis=1), labels=range(logits.shape[1])).tolist()


def brier_score(probabilities: np.ndarray, gold_labels: np.ndarray) -> float:
    """Return the mean squared distance between probabilities and the gold class's one-hot row (Brier 1950).

    `probabilities` is (examples, classes). 0 is best; 2 is worst: sure of a wrong class every time.
    """
    one_hot = np.eye(probabilities.shape[1])[gold_labels]
    return float(((probabilities - one_hot) ** 2).sum(axis=1).mean())


def compare_paired(
    scores: np.ndarray, control_scores: np.ndarray, *, measure: Measure = "accuracy", seed: int = 0
) -> PairedComparison:
    """Return a classifier's gain over its control, with its 95 % interval and p-value.

    Both arguments say how right each answer was (see decisions.scores_of), for the same examples in the same order. The
    p-value is from McNemar's exact test if every answer was right or wrong (McNemar 1947). Its null hypothesis: if only
    one of the two is right on an example, it is equally likely to be either. For scores in between, it is from the test
    that McNemar's is a case of, which flips the sign of each difference at random (Fisher 1935, section 21). The 95 %
    interval is the percentile bootstrap over examples, with both answers of an example drawn together (Efron &
    Tibshirani 1993, section 13.3). `only_first_correct` and `only_second_correct` count the examples on which the first
    or the second has the higher score.
    """
    difference = scores.astype(np.float64) - control_scores.astype(np.float64)
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
    if np.isin(difference, (-1, 0, 1)).all():
        p_value = float(binomtest(first, first + second).pvalue) if first + second else 1.0
    else:
        p_value = _sign_flip_p_value(difference, np.random.default_rng(seed))
    return {
        "examples": len(difference),
        "measure": measure,
        "gain": gain,
        "gain_ci95": interval,
        "p_value": p_value,
        "only_first_correct": first,
        "only_second_correct": second,
    }


def compare_predictions(first: Predictions, second: Predictions) -> PairedComparison:
    """Return the gain of the first model over the second, whose predictions are of the same texts.

    It is a gain in accuracy, or in the F1 of a text's labels if a text may have several.
    """
    scores = [scores_of(answers_of(one.logits, one.thresholds), one.gold_labels) for one in (first, second)]
    return compare_paired(*scores, measure="accuracy" if first.thresholds is None else "f1")


def _sign_flip_p_value(difference: np.ndarray, rng: np.random.Generator) -> float:
    """Return the two-sided p-value of a sum if the sign of each term may as well be the other one.

    It counts the sum that was found among the random ones, so it is never 0 (Phipson and Smyth 2010). The F1 of a text
    has few values. Of the terms of one size, only the number of positive ones counts, which is binomial, so time and
    memory hardly depend on the number of texts (scipy's permutation_test takes 20 seconds for 20,000).
    """
    sizes, counts = np.unique(np.abs(difference).round(12), return_counts=True)
    flipped = (2 * rng.binomial(counts, 0.5, size=(SIGN_FLIPS, len(counts))) - counts) @ sizes
    extreme = (np.abs(flipped) >= abs(difference.sum()) - 1e-6).sum()  # sums that differ only by rounding are equal
    return float((extreme + 1) / (SIGN_FLIPS + 1))


def chance_p_value(answers: np.ndarray, gold_labels: np.ndarray) -> float:
    """Return the p-value for `answers` that are independent of `gold_labels`.

    Two classes are tested by Fisher's exact test, more by the chi-squared test of independence. Unlike accuracy, this
    distinguishes a model that learned a rare class from one that learned nothing. It is 1 if all answers or all labels
    are the same. If a text may have several labels, each is tested, and the smallest p-value is multiplied by their
    number (Bonferroni).
    """
    if answers.ndim == 2:
        return min(1.0, answers.shape[1] * min(map(chance_p_value, answers.T, gold_labels.T)))
    table = crosstab(answers, gold_labels).count
    if min(table.shape) < 2:
        return 1.0
    return float((fisher_exact if table.shape == (2, 2) else chi2_contingency)(table).pvalue)


def commonest_share(gold_labels: np.ndarray) -> float:
    """Return the share of the commonest class, or set of labels: the accuracy of always answering it."""
    return _commonest(gold_labels)[1]


def constant_score(gold_labels: np.ndarray) -> float:
    """Return the mean score (see decisions.scores_of) of the best answer that is the same for every text.

    With one label a text, that is the commonest class. With several, it is one of: no label, the commonest label, the
    two commonest, and so on.
    """
    if gold_labels.ndim == 1:
        return commonest_share(gold_labels)
    order = np.argsort(-gold_labels.sum(axis=0, dtype=np.int64), kind="stable")
    given = gold_labels.sum(axis=1, dtype=np.int64)
    right = np.cumsum(gold_labels[:, order], axis=1, dtype=np.int64)
    f1 = (2 * right / (given[:, None] + np.arange(1, len(order) + 1))).mean(axis=0)
    return float(max((given == 0).mean(), f1.max()))


def _commonest(gold_labels: np.ndarray) -> tuple[np.ndarray | int, float]:
    """Return the commonest gold label, a class index or a row of 0 and 1, and its share of the texts."""
    found, counts = np.unique(gold_labels, axis=0, return_counts=True)
    return found[counts.argmax()], float(counts.max() / len(gold_labels))


def faults_of_answers(
    logits: np.ndarray, gold_labels: np.ndarray, label_names: Sequence[str], thresholds: Thresholds = None
) -> list[str]:
    """Return in words what is wrong with a classifier's answers as a whole; empty if nothing is.

    `logits` is (examples, classes). The faults are: one answer for every text; an accuracy not above the share of the
    commonest class; answers that may be chance (p not below 0.05); and classes of test texts that are never answered.
    If a text may have several labels, the F1 of a text's labels takes the place of accuracy (see `constant_score`).
    """
    answers, (commonest, share) = answers_of(logits, thresholds), _commonest(gold_labels)
    if share == 1:
        only, others = in_words(commonest, label_names), "classes" if thresholds is None else "labels"
        return [f"was tested only on texts of {only}; nothing is known about the other {others}"]
    if (answers == answers[0]).all() and len(answers) > 1:
        return [f"answers {in_words(answers[0], label_names)} for every one of {len(answers)} test texts"]
    said = []
    score, constant = float(scores_of(answers, gold_labels).mean()), constant_score(gold_labels)
    if score <= constant:
        said.append(
            f"is no better than always answering the commonest class: test accuracy {score:.4f}, against "
            f"{constant:.4f} for {in_words(commonest, label_names)}"
            if thresholds is None
            else f"is no better than the same labels for every text: F1 per text on test {score:.4f}, against "
            f"{constant:.4f}"
        )
    elif (p_value := chance_p_value(answers, gold_labels)) >= SIGNIFICANT:
        said.append(f"may answer by chance: not significant with {len(answers)} test texts (p = {p_value:.2f})")
    if never := never_answered(answers, gold_labels, label_names):
        said.append(f"never answers {never}")
    return said


def never_answered(answers: np.ndarray, gold_labels: np.ndarray, label_names: Sequence[str]) -> str:
    """Return in words which classes of the test texts a model never answers, the largest first; empty if none."""
    answered, sizes = (as_matrix(labels, len(label_names)).sum(axis=0) for labels in (answers, gold_labels))
    never = sorted(np.flatnonzero((answered == 0) & (sizes > 0)), key=lambda index: -sizes[index])
    shown = [f"{label_names[index]} (of {sizes[index]} test texts)" for index in never[:CLASSES_NAMED]]
    kinds = "classes" if gold_labels.ndim == 1 else "labels"
    more = f" and {len(never) - CLASSES_NAMED} more {kinds}" if len(never) > CLASSES_NAMED else ""
    return ", ".join(shown) + more


def agreement(logits: np.ndarray, reference_logits: np.ndarray, thresholds: Thresholds = None) -> float:
    """Return the share of examples to which both give the same answer; both logits are (examples, classes)."""
    return float(are_equal(answers_of(logits, thresholds), answers_of(reference_logits, thresholds)).mean())


def _roc_auc(probabilities: np.ndarray, gold: np.ndarray) -> float | None:
    """Return the area under the ROC curve: of the second of two classes, else the macro mean of one-vs-rest."""
    classes = probabilities.shape[1]
    if len(np.unique(gold)) < classes:
        return None
    if classes == 2:
        return _of_both_kinds(roc_auc_score, gold == 1, probabilities[:, 1])
    return float(roc_auc_score(gold, probabilities, multi_class="ovr", average="macro", labels=range(classes)))


def _of_both_kinds(figure: Callable[..., Any], is_class: np.ndarray, ranked: np.ndarray) -> float | None:
    """Return a figure of how well texts of a class are ranked above the others; None without texts of both kinds."""
    if is_class.all() or not is_class.any():
        return None
    return float(figure(is_class, ranked))


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are there; None if none is."""
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found else None
