"""A cascade of classifiers: each answers the texts that it is sure of, and the next one gets the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from distill.data.pairs import Text
from distill.decisions import softmax
from distill.errors import ModelError
from distill.inference.text_classifier import TextClassifier, check_finite
from distill.models.config import align_labels
from distill.recipe.labels import SAME_NAMES


class Cascade(TextClassifier):
    """Classifiers, cheapest first, and for each but the last the probability from which on its answer counts.

    The classes are `label_names`; each classifier may have them in another order, and call them as `label_map` says.
    `names` are those of the classifiers, for messages. Several threads may share a cascade. Raises `ModelError` if one
    of them gives a text several labels: no single probability says how sure it is.
    """

    format = "cascade"
    max_tokens = None  # each classifier has its own

    def __init__(
        self,
        classifiers: Sequence[TextClassifier],
        sure_from: Sequence[float],
        names: Sequence[str],
        label_names: Sequence[str],
        label_map: Mapping[str, str] = SAME_NAMES,
    ):
        for one, name in zip(classifiers, names, strict=True):
            if one.thresholds is not None:
                raise ModelError(f"{name}: gives a text any number of labels, and a cascade needs one label a text")
        self.classifiers, self.sure_from, self.names = list(classifiers), [*sure_from, 0.0], list(names)
        self.device = self.classifiers[-1].device
        self.reads = next((one.reads for one in classifiers if one.reads), None)
        self.label_names = tuple(label_names)
        self._columns = [
            align_labels(one.label_names, label_names, label_map, teacher=name)
            for one, name in zip(classifiers, names, strict=True)
        ]

    def logits(self, texts: Sequence[Text], *, progress: Callable[[int], object] = lambda done: None) -> np.ndarray:
        """Return the logits of the classifier that answered each text, float32, shape (texts, classes).

        `progress` is called with the number of texts that were answered. Raises `TypeError` if `texts` is one text,
        and `ModelError` if a logit is not finite.
        """
        return self.answers(texts, progress=progress)[0]

    def answers(
        self, texts: Sequence[Text], *, progress: Callable[[int], object] = lambda done: None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the logits and the number of the classifier that gave them, from 0, for each text; see `logits`."""
        if isinstance(texts, str):
            raise TypeError("wants a list of texts, got one text: [text]")
        texts = list(texts[:])  # a column of datasets is slow text by text, and one of pandas has its own indices
        logits = np.zeros((len(texts), len(self.label_names)), np.float32)
        answered_by = np.zeros(len(texts), np.int64)
        left = np.arange(len(texts))
        for step, (classifier, sure_from) in enumerate(zip(self.classifiers, self.sure_from, strict=True)):
            if not len(left):
                break
            found = classifier.logits([texts[index] for index in left])[:, self._columns[step]]
            check_finite(found, self.names[step])  # else it would pass on all texts, and nobody would know
            sure = softmax(found).max(axis=1) >= sure_from
            if step == len(self.classifiers) - 1:
                sure[:] = True
            logits[left[sure]], answered_by[left[sure]] = found[sure], step
            progress(int(sure.sum()))
            left = left[~sure]
        return logits, answered_by

    def warm_up(self) -> None:
        """Warm up each classifier."""
        for classifier in self.classifiers:
            classifier.warm_up()
