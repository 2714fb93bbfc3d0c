"""What every classifier of texts can do, whatever it is made of: labels and probabilities from its logits."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.data.pairs import Text, joined_texts
from distill.decisions import Thresholds, answers_of, probabilities_of
from distill.errors import ModelError
from distill.models.truncation import Reads

if TYPE_CHECKING:
    from distill.machine.devices import Device


class TextClassifier(abc.ABC):
    """Class names and logits: `classifier(texts)` gives labels, in the texts' order.

    `format` and `device` name what computes the logits. `thresholds` has the lowest probability at which each label is
    answered, if a text may have several; else it is None. `reads` says whether it was trained on texts or on pairs,
    and is None if it takes both. Several threads may share a classifier.
    """

    label_names: tuple[str, ...]
    thresholds: Thresholds = None
    reads: Reads | None = None
    format: str
    device: Device
    max_tokens: int | None  # what it reads of a text; None if it reads all of it

    def __call__(self, texts: Sequence[Text]) -> list[dict[str, Any]]:
        """Return the likeliest label of each text and its probability, as {"label", "score"}.

        If a text may have several labels, return those that reach their thresholds, as {"labels", "scores"}, both
        lists, the likeliest first.
        """
        logits = self._finite_logits(texts)
        probabilities, answers = probabilities_of(logits, self.thresholds), answers_of(logits, self.thresholds)
        return [named_answer(*row, self.label_names) for row in zip(answers, probabilities, strict=True)]

    def probabilities(self, texts: Sequence[Text]) -> np.ndarray:
        """Return probabilities, float32, shape (texts, classes); raises `ModelError` if logits are not finite.

        Those of a text sum to 1, unless it may have several labels.
        """
        return probabilities_of(self._finite_logits(texts), self.thresholds)

    def _finite_logits(self, texts: Sequence[Text]) -> np.ndarray:
        logits = self.logits(texts)
        check_finite(logits, f"{self.format} on {self.device}")
        return logits

    @abc.abstractmethod
    def logits(self, texts: Sequence[Text], *, progress: Callable[[int], object] = lambda done: None) -> np.ndarray:
        """Return logits, float32, shape (texts, classes); `progress` is called with the number of texts of each batch.

        A text is a string, or a tuple of two for a pair. Raises `TypeError` if `texts` is one text, or mixes both.
        """

    @abc.abstractmethod
    def warm_up(self) -> None:
        """Do what the runtime does only at its first calls."""


def named_answer(answer: np.ndarray, probabilities: np.ndarray, label_names: Sequence[str]) -> dict[str, Any]:
    """Return the answer to one text with names: a class index, or 0 and 1 for each label (see TextClassifier)."""
    if answer.ndim == 0:
        return {"label": label_names[answer], "score": float(probabilities[answer])}
    found = sorted(np.flatnonzero(answer), key=lambda label: -probabilities[label])
    return {
        "labels": [label_names[label] for label in found],
        "scores": [float(probabilities[label]) for label in found],
    }


def check_finite(logits: np.ndarray, name: str) -> None:
    """Raise `ModelError` if a logit of the model `name` is NaN or infinite."""
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        raise ModelError(
            f"{name}: its logits on {len(broken)} of {len(logits)} texts are not finite (first: text {broken[0]})",
            hint="try it in fp32; if that does not help, train it again with a lower learning rate",
        )


def plain(texts: Sequence[Text], reads: Reads | None = None, name: str = "") -> list[str]:
    """Return texts as `encode` takes them: pairs as one string each, and nothing in them that cannot be encoded.

    Raises `TypeError` if `texts` is one text, or holds pairs beside single texts. Raises `ModelError` if they are not
    what the model `name` `reads`; None takes both.
    """
    if isinstance(texts, str):
        raise TypeError("wants a list of texts, got one text: [text]")
    texts = texts[:]  # because a column of datasets is slow text by text
    pairs = sum(not isinstance(text, str) for text in texts)
    if pairs and (pairs < len(texts) or any(len(text) != 2 for text in texts)):
        raise TypeError("wants texts, or pairs of two texts, and not both")
    given: Reads = "pairs" if pairs else "texts"
    if len(texts) and reads not in (None, given):
        other = "pairs of texts, such as (premise, hypothesis)" if reads == "pairs" else "single texts"
        raise ModelError(f"{name}: the model was trained on {other}, and got {given}")
    if pairs:
        return [joined_texts(*map(encodable, text)) for text in texts]
    return [joined_texts(encodable(text)) for text in texts]


def encodable(text: str) -> str:
    """Return the text with unpaired surrogates, which cannot be encoded, replaced by the replacement character."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
