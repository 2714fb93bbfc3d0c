"""Classify a stream of texts with one classifier, or with a second one if the first is not sure."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from scipy.special import softmax

from distill.inference.cascade import Cascade
from distill.inference.classifier import device_of_step, load
from distill.machine.progress import progress_line
from distill.storage.exports import EXPORT_PROOFS
from distill.storage.run_folder import RunFolder

log = logging.getLogger("distill")

MOST_TEXTS = 4_096  # in memory at once
MOST_CHARACTERS = 4_000_000  # in those texts; their tokens take some forty bytes per character


def predictions(
    model: Path | str,
    texts: Iterable[str],
    *,
    escalate: Path | str | None = None,
    below: float = 0.8,
    device: str = "auto",
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each text and its probability per label, in order; only a few thousand texts are in memory at a time.

    If the likeliest label of a text has a probability below `below`, the classifier `escalate` answers it instead.
    """
    classifier = load(model, device)
    if escalate:
        second = load(escalate, device_of_step(Path(escalate), device))
        classifier = Cascade([classifier, second], [below], [str(model), str(escalate)], classifier.label_names)
    answered = Counter[int]()
    exports = RunFolder(Path(model)).export
    hint = f" (its exports: distill predict {exports})" if (exports / EXPORT_PROOFS).is_file() else ""
    log.info("predict: %s on %s%s", classifier.format, classifier.device, hint)
    with progress_line("predict", None, "text") as bar:
        for chunk in _chunks(texts):
            if isinstance(classifier, Cascade):
                logits, answered_by = classifier.answers(chunk)
                answered.update(answered_by.tolist())
                probabilities = softmax(logits, axis=1)
            else:
                probabilities = classifier.probabilities(chunk)
            for text, row in zip(chunk, probabilities.tolist(), strict=True):
                yield text, dict(zip(classifier.label_names, row, strict=True))
            bar.update(len(chunk))
    if isinstance(classifier, Cascade):
        for step, name in enumerate(classifier.names):
            log.info("predict: %s answered %d of %d texts", name, answered[step], answered.total())


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Cut a stream into lists of at most `MOST_TEXTS` texts, or fewer if they are long."""
    chunk: list[str] = []
    characters = 0
    for text in texts:
        chunk.append(text)
        characters += len(text)
        if len(chunk) == MOST_TEXTS or characters >= MOST_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
