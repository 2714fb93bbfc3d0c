"""Classify a stream of texts with one classifier, or with a second one if the first is not sure."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distill.data.pairs import Text
from distill.decisions import Thresholds, answers_of, probabilities_of
from distill.errors import DataError
from distill.inference.cascade import Cascade
from distill.inference.classifier import device_of_step, load
from distill.inference.text_classifier import check_finite, named_answer
from distill.machine.progress import progress_line
from distill.storage.exports import EXPORT_PROOFS
from distill.storage.run_folder import RunFolder

log = logging.getLogger("distill")

MOST_TEXTS = 4_096  # in memory at once
MOST_CHARACTERS = 4_000_000  # in those texts; their tokens take some forty bytes per character


def predict(
    model: Path | str,
    texts: Iterable[Text],
    *,
    escalate: Path | str | None = None,
    below: float = 0.8,
    device: str = "auto",
) -> Iterator[Prediction]:
    """Yield what the classifier says of each text, in order; only a few thousand texts are in memory at a time.

    If the likeliest label of a text has a probability below `below`, the classifier `escalate` answers it instead.
    """
    for answered in answers(model, texts, escalate=escalate, below=below, device=device):
        names = answered.label_names
        probabilities = probabilities_of(answered.logits, answered.thresholds)
        found = answers_of(answered.logits, answered.thresholds)
        for text, answer, row in zip(answered.texts, found, probabilities, strict=True):
            yield Prediction(text, named_answer(answer, row, names), dict(zip(names, row.tolist(), strict=True)))


class Prediction(NamedTuple):
    """A text, its answer as `TextClassifier` gives it, and the probability of each label."""

    text: Text
    answer: dict[str, Any]
    probabilities: dict[str, float]


class Answered(NamedTuple):
    """Some texts with their calibrated logits, float32 (texts, classes)."""

    texts: Sequence[Text]
    logits: np.ndarray
    label_names: Sequence[str]
    thresholds: Thresholds


def answers(
    model: Path | str,
    texts: Iterable[Text],
    *,
    escalate: Path | str | None = None,
    below: float = 0.8,
    device: str = "auto",
) -> Iterator[Answered]:
    """Yield the logits of a few thousand texts at a time, as in `predict`."""
    classifier = load(model, device)
    if escalate:
        second = load(escalate, device_of_step(Path(escalate), device))
        classifier = Cascade([classifier, second], [below], [str(model), str(escalate)], classifier.label_names)
    steps = Counter[int]()
    exports = RunFolder(Path(model)).export
    hint = f" (its exports: distill predict {exports})" if (exports / EXPORT_PROOFS).is_file() else ""
    log.info("predict: %s on %s%s", classifier.format, classifier.device, hint)
    with progress_line("predict", None, "text") as bar:
        for chunk in _chunks(texts):
            if isinstance(classifier, Cascade):
                logits, answered_by = classifier.answers(chunk)
                steps.update(answered_by.tolist())
            else:
                logits = classifier.logits(chunk)
                check_finite(logits, f"{classifier.format} on {classifier.device}")
            yield Answered(chunk, logits, classifier.label_names, classifier.thresholds)
            bar.update(len(chunk))
    if isinstance(classifier, Cascade):
        for step, name in enumerate(classifier.names):
            log.info("predict: %s answered %d of %d texts", name, steps[step], steps.total())


def write_answers(
    model: Path | str,
    texts: Iterable[Text],
    output: Path | str,
    *,
    text_columns: Sequence[str] = ("text",),
    escalate: Path | str | None = None,
    below: float = 0.8,
    device: str = "auto",
) -> int:
    """Write texts, labels and logits to a table that can teach a student; return the number of texts.

    The other arguments are as in `predict`. Raises `FolderError` if `output` is there already.
    """
    from distill.storage.answers import check_new_table, write_table  # not at the top: pyarrow takes a while to import

    check_new_table(Path(output))
    found = answers(model, texts, escalate=escalate, below=below, device=device)
    first = next(found, None)
    if first is None:
        raise DataError("predict: there are no texts")
    chunks = ((one.texts, one.logits) for one in itertools.chain([first], found))
    return write_table(Path(output), text_columns, first.label_names, chunks, first.thresholds)


def _chunks(texts: Iterable[Text]) -> Iterator[list[Text]]:
    """Cut a stream into lists of at most `MOST_TEXTS` texts, or fewer if they are long."""
    chunk: list[Text] = []
    characters = 0
    for text in texts:
        chunk.append(text)
        characters += len(text) if isinstance(text, str) else sum(map(len, text))
        if len(chunk) == MOST_TEXTS or characters >= MOST_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
