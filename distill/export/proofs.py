"""Prove an exported format: compare it with its model on real texts, and check that the loss is within bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy.special import softmax

from distill.data.pairs import Text
from distill.decisions import (
    Thresholds,
    answers_of,
    are_equal,
    as_matrix,
    as_two_classes,
    in_words,
    probabilities_of,
)
from distill.machine.devices import Device
from distill.measuring.metrics import agreement
from distill.models.calibration import expected_calibration_error


@dataclass(frozen=True)
class Bounds:
    """The accuracy that a format may lose, and the share of the texts on which it must agree, both as fractions."""

    max_accuracy_drop: float
    min_agreement: float


@dataclass(frozen=True)
class Proof:
    """A format's figures on the validation texts; they are None if its logits were not finite.

    `texts` is their number, and `flipped` counts those whose label, or any of whose labels, changed. `per_class` has
    the number of texts of each class, and accuracy and agreement on them; of a label, whether a text has it. `settings`
    are those of the format, and `tried` holds earlier settings that failed, with the reason. `texts_per_second` is the
    speed on `device`, or None if the format is not meant for that device. `note` says which parts of the graph are
    slower than those of other architectures.
    """

    format: str
    passed: bool
    reason: str | None
    size_bytes: int
    device: Device
    texts_per_second: float | None = None
    texts: int | None = None
    accuracy: float | None = None
    accuracy_drop: float | None = None
    agreement: float | None = None
    flipped: int | None = None
    max_logit_diff: float | None = None
    mean_logit_diff: float | None = None
    ece: float | None = None
    per_class: dict[str, dict[str, float | int | None]] = field(default_factory=dict)
    fusion: dict[str, Any] = field(default_factory=dict)
    note: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    tried: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the entry of export.json."""
        return {name: value for name, value in asdict(self).items() if name != "format"}


def prove(
    format: str,
    logits: np.ndarray,
    reference: np.ndarray,
    gold_labels: np.ndarray,
    label_names: Sequence[str],
    bounds: Bounds,
    *,
    thresholds: Thresholds = None,
    size_bytes: int,
    device: Device,
    texts_per_second: float | None = None,
    fusion: Mapping[str, Any] | None = None,
    unfused: str | None = None,
    note: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Proof:
    """Return the proof of a format that gave `logits`; the model gave `reference`; both are (texts, classes).

    If a text may have several labels, its `thresholds` are given, and an answer is right or agrees if all labels do.
    `fusion` counts the fused nodes of its graph (see fusion.count_fused_nodes). `unfused` says which are missing, and
    fails the proof; `note` says it where that is as expected.
    """
    shared: dict[str, Any] = {
        "format": format, "size_bytes": size_bytes, "device": device, "texts_per_second": texts_per_second,
        "fusion": dict(fusion or {}), "note": note, "settings": dict(settings or {}),
    }  # fmt: skip
    broken = ~np.isfinite(logits).all(axis=1)
    if broken.any():
        reason = f"logits of {broken.sum()} of {len(logits)} texts are not finite"
        return Proof(passed=False, reason=reason, **shared)
    labels, wanted = answers_of(logits, thresholds), answers_of(reference, thresholds)
    accuracy = float(are_equal(labels, gold_labels).mean())
    drop = float(are_equal(wanted, gold_labels).mean()) - accuracy
    agreed = agreement(logits, reference, thresholds)
    reasons = [unfused] if unfused else []
    is_constant = bool((labels == labels[0]).all()) and not (wanted == wanted[0]).all()
    if is_constant:
        reasons.append(f"answers {in_words(labels[0], label_names)} for every one of {len(labels)} texts")
    if drop > bounds.max_accuracy_drop + 1e-9:  # the bound itself is allowed, however the subtraction rounds
        figure = "validation accuracy" if thresholds is None else "exact match on validation"
        reasons.append(f"{figure} falls by {drop:.4f}, more than export.max_accuracy_drop {bounds.max_accuracy_drop}")
    if agreed < bounds.min_agreement - 1e-9:
        reasons.append(
            f"agrees with the model on {agreed:.4f} of the validation texts, less than export.min_agreement "
            f"{bounds.min_agreement}"
        )
    if not is_constant:  # else every other class would be reported too
        reasons.extend(_lost_classes(labels, wanted, gold_labels, label_names))
    two_logits, two_classes = as_two_classes(logits, gold_labels)
    return Proof(
        passed=not reasons,
        reason="; ".join(reasons) or None,
        texts=len(logits),
        accuracy=accuracy,
        accuracy_drop=drop,
        agreement=agreed,
        flipped=int((~are_equal(labels, wanted)).sum()),
        max_logit_diff=float(np.abs(logits - reference).max()),
        mean_logit_diff=float(np.abs(logits - reference).mean()),
        ece=expected_calibration_error(softmax(two_logits, axis=1), two_classes),
        per_class=dict(_per_class(labels, wanted, gold_labels, label_names)),
        **shared,
    )


def flips(
    texts: Sequence[Text],
    logits: np.ndarray,
    reference: np.ndarray,
    gold_labels: np.ndarray,
    label_names: Sequence[str],
    thresholds: Thresholds = None,
) -> Iterator[dict[str, Any]]:
    """Yield each text whose label changed, with all its labels and probabilities; the largest change comes first.

    If a text may have several labels, `changed` names those that were added or lost. Texts whose logits are not finite
    have no label and are left out.
    """
    finite = np.isfinite(logits).all(axis=1, keepdims=True)
    logits = np.where(finite, logits, reference)
    before, after = probabilities_of(reference, thresholds), probabilities_of(logits, thresholds)
    wanted, labels = answers_of(reference, thresholds), answers_of(logits, thresholds)
    changed = np.flatnonzero(~are_equal(wanted, labels))
    for row in sorted(changed, key=lambda row: -np.abs(after[row] - before[row]).max()):
        found = {
            "text": text if isinstance(text := texts[row], str) else " | ".join(text),
            "gold": in_words(gold_labels[row], label_names),
            "model": in_words(wanted[row], label_names),
            "format": in_words(labels[row], label_names),
            "model_probabilities": _named(before[row], label_names),
            "format_probabilities": _named(after[row], label_names),
        }
        if thresholds is not None:
            found["changed"] = [label_names[index] for index in np.flatnonzero(wanted[row] != labels[row])]
        yield found


def _lost_classes(
    labels: np.ndarray, wanted: np.ndarray, gold_labels: np.ndarray, label_names: Sequence[str]
) -> Iterator[str]:
    """Yield a reason for each class in which the model has correct texts and the format has none.

    A format can lose a rare class completely while accuracy and agreement stay within their bounds.
    """
    answered, had, has_label = (as_matrix(found, len(label_names)) for found in (labels, wanted, gold_labels))
    for index, name in enumerate(label_names):
        rows = has_label[:, index]
        of_model = int(had[rows, index].sum())
        if not of_model or answered[rows, index].any():
            continue
        if gold_labels.ndim == 1:
            yield f"gets 0 of {rows.sum()} texts of class {name} right, the model {of_model}"
        else:
            yield f"finds the label {name} on 0 of the {rows.sum()} texts that have it, the model on {of_model}"


def _per_class(
    labels: np.ndarray, wanted: np.ndarray, gold_labels: np.ndarray, label_names: Sequence[str]
) -> Iterator[tuple[str, dict[str, float | int | None]]]:
    answered, has_label = as_matrix(labels, len(label_names)), as_matrix(gold_labels, len(label_names))
    for index, name in enumerate(label_names):
        rows = has_label[:, index]
        same = labels == wanted if labels.ndim == 1 else labels[:, index] == wanted[:, index]
        yield (
            name,
            {
                "examples": int(rows.sum()),
                "accuracy": float(answered[rows, index].mean()) if rows.any() else None,
                "agreement": float(same[rows].mean()) if rows.any() else None,
            },
        )


def _named(probabilities: np.ndarray, label_names: Sequence[str]) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in zip(label_names, probabilities, strict=True)}
