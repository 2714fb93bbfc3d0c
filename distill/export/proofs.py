"""Prove an exported format: compare it with its model on real texts, and check that the loss is within bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy.special import softmax

from distill.data.pairs import Text
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

    `per_class` has the number of texts of each class, and accuracy and agreement on them. `settings` are those of the
    format, and `tried` holds earlier settings that failed, with the reason. `flipped` counts the texts whose label
    changed. `texts_per_second` is the speed on `device`, or None if the format is not meant for that device. `note`
    says which parts of the graph are slower than those of other architectures.
    """

    format: str
    passed: bool
    reason: str | None
    size_bytes: int
    device: Device
    texts_per_second: float | None = None
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
    size_bytes: int,
    device: Device,
    texts_per_second: float | None = None,
    fusion: Mapping[str, Any] | None = None,
    unfused: str | None = None,
    note: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Proof:
    """Return the proof of a format that gave `logits`; the model gave `reference`; both are (texts, classes).

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
    labels, wanted = logits.argmax(axis=1), reference.argmax(axis=1)
    accuracy = float((labels == gold_labels).mean())
    drop = float((wanted == gold_labels).mean()) - accuracy
    agreed, found = agreement(logits, reference), np.unique(labels)
    reasons = [unfused] if unfused else []
    is_constant = len(found) == 1 and len(np.unique(wanted)) > 1
    if is_constant:
        reasons.append(f"answers {label_names[found[0]]} for every one of {len(labels)} texts")
    if drop > bounds.max_accuracy_drop + 1e-9:  # the bound itself is allowed, however the subtraction rounds
        reasons.append(
            f"validation accuracy falls by {drop:.4f}, more than export.max_accuracy_drop {bounds.max_accuracy_drop}"
        )
    if agreed < bounds.min_agreement - 1e-9:
        reasons.append(
            f"agrees with the model on {agreed:.4f} of the validation texts, less than export.min_agreement "
            f"{bounds.min_agreement}"
        )
    if not is_constant:  # else every other class would be reported too
        reasons.extend(_lost_classes(labels, wanted, gold_labels, label_names))
    return Proof(
        passed=not reasons,
        reason="; ".join(reasons) or None,
        accuracy=accuracy,
        accuracy_drop=drop,
        agreement=agreed,
        flipped=int((labels != wanted).sum()),
        max_logit_diff=float(np.abs(logits - reference).max()),
        mean_logit_diff=float(np.abs(logits - reference).mean()),
        ece=expected_calibration_error(softmax(logits, axis=1), gold_labels),
        per_class=dict(_per_class(labels, wanted, gold_labels, label_names)),
        **shared,
    )


def flips(
    texts: Sequence[Text],
    logits: np.ndarray,
    reference: np.ndarray,
    gold_labels: np.ndarray,
    label_names: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """Yield each text whose label changed, with all its labels and probabilities; the largest change comes first.

    Texts whose logits are not finite have no label and are left out.
    """
    finite = np.isfinite(logits).all(axis=1, keepdims=True)
    before, after = softmax(reference, axis=1), softmax(np.where(finite, logits, reference), axis=1)
    changed = np.flatnonzero(before.argmax(axis=1) != after.argmax(axis=1))
    for row in sorted(changed, key=lambda row: -np.abs(after[row] - before[row]).max()):
        yield {
            "text": text if isinstance(text := texts[row], str) else " | ".join(text),
            "gold": label_names[gold_labels[row]],
            "model": label_names[before[row].argmax()],
            "format": label_names[after[row].argmax()],
            "model_probabilities": _named(before[row], label_names),
            "format_probabilities": _named(after[row], label_names),
        }


def _lost_classes(
    labels: np.ndarray, wanted: np.ndarray, gold_labels: np.ndarray, label_names: Sequence[str]
) -> Iterator[str]:
    """Yield a reason for each class in which the model has correct texts and the format has none.

    A format can lose a rare class completely while accuracy and agreement stay within their bounds.
    """
    for index, name in enumerate(label_names):
        rows = gold_labels == index
        had = int((wanted[rows] == index).sum())
        if had and not (labels[rows] == index).any():
            yield f"gets 0 of {rows.sum()} texts of class {name} right, the model {had}"


def _per_class(
    labels: np.ndarray, wanted: np.ndarray, gold_labels: np.ndarray, label_names: Sequence[str]
) -> Iterator[tuple[str, dict[str, float | int | None]]]:
    for index, name in enumerate(label_names):
        rows = gold_labels == index
        yield (
            name,
            {
                "examples": int(rows.sum()),
                "accuracy": float((labels[rows] == index).mean()) if rows.any() else None,
                "agreement": float((labels[rows] == wanted[rows]).mean()) if rows.any() else None,
            },
        )


def _named(probabilities: np.ndarray, label_names: Sequence[str]) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in zip(label_names, probabilities, strict=True)}
