"""The baseline: a linear classifier on words and word pairs, which reads whole texts without a tokenizer or torch.

Its features are tf-idf weights (sublinear tf) of hashed word 1-grams and 2-grams, of which only those are kept that
stand in two training texts or more. It is saved without a pickle: settings in JSON, arrays in safetensors.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import HashingVectorizer
from typing_extensions import TypedDict

from distill.data.pairs import Text, parts_of
from distill.decisions import Thresholds
from distill.errors import ModelError, one_line
from distill.inference.text_classifier import TextClassifier, encodable, plain
from distill.machine.devices import Device
from distill.models.truncation import Reads
from distill.storage.checksums import ANSWERING, LINEAR_SETTINGS, LINEAR_WEIGHTS, check_whole
from distill.storage.files import read_json, write_json
from distill.storage.records import checked

LONGEST = 2  # words in an n-gram
BUCKETS = 2**22  # of the hash; with fewer, collisions cost accuracy on large data
AT_ONCE = 1_024  # texts
# A word, of two characters at least as scikit-learn has it. In scripts that are written without spaces (Chinese,
# Japanese, Thai, Lao, Khmer, Burmese) each character is one, so that a word is a pair of them.
SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = rf"[{SPACELESS}]|(?:(?![{SPACELESS}])\w){{2,}}"


class _Settings(TypedDict):
    label_names: list[str]
    longest: int
    buckets: int
    reads: NotRequired[Reads]
    thresholds: NotRequired[list[float]]


@dataclass(frozen=True)
class WordNgrams:
    """Texts to features. `columns` are the buckets that are kept, in ascending order, `idf` their weights."""

    columns: np.ndarray
    idf: np.ndarray

    def features(self, texts: Sequence[str]) -> csr_matrix:
        """Return tf-idf features, a sparse matrix (texts, features) with rows of length 1."""
        return self.weighted(counts(texts))

    def weighted(self, found: csr_matrix) -> csr_matrix:
        """Return the tf-idf features of `counts`, with rows of length 1."""
        # Not found[:, columns]: scipy would make an array of all buckets for it, which takes longer than all the rest.
        at = np.searchsorted(self.columns, found.indices).clip(max=len(self.columns) - 1)
        kept = self.columns[at] == found.indices
        ends = np.concatenate([[0], np.cumsum(kept)])[found.indptr]
        weights = (1 + np.log(found.data[kept])) * self.idf[at[kept]]
        rows = np.repeat(np.arange(found.shape[0]), np.diff(ends))
        norms = np.sqrt(np.bincount(rows, weights**2, found.shape[0]))
        weights /= norms[rows]
        return csr_matrix((weights.astype(np.float32), at[kept], ends), shape=(found.shape[0], len(self.columns)))


def counts(texts: Sequence[str]) -> csr_matrix:
    """Return how often each hashed n-gram stands in each text, a sparse matrix (texts, `BUCKETS`)."""
    found: Any = _vectorizer().transform(map(encodable, texts))
    return found


def _ngrams(text: str) -> list[str]:
    """Return the words and word pairs of a text; of a pair, also the words that both have, which a sum cannot see."""
    first, *others = (re.findall(WORD, part.lower()) for part in parts_of(text))
    found = _of_words(first)
    for second in others:
        shared = set(first) & set(second)
        found += [f"second_{ngram}" for ngram in _of_words(second)]
        found += [f"both_{word}" for word in second if word in shared]
    return found


def _of_words(words: list[str]) -> list[str]:
    return words + [f"{word} {following}" for word, following in itertools.pairwise(words)]


@functools.cache
def _vectorizer() -> HashingVectorizer:
    return HashingVectorizer(analyzer=_ngrams, n_features=BUCKETS, alternate_sign=False, norm=None, dtype=np.float32)


class LinearClassifier(TextClassifier):
    """A linear classifier on `ngrams`: logits are features @ weights.T + bias.

    `weights` is (classes, features), `bias` (classes,), both float32.
    """

    format = "linear"
    device: Device = "cpu"
    max_tokens = None

    def __init__(
        self,
        ngrams: WordNgrams,
        weights: np.ndarray,
        bias: np.ndarray,
        label_names: Sequence[str],
        thresholds: Thresholds = None,
        *,
        reads: Reads = "texts",
    ):
        self.ngrams, self.weights, self.bias, self.thresholds = ngrams, weights, bias, thresholds
        self.reads: Reads | None = reads
        self.label_names = tuple(label_names)
        self._columns = np.ascontiguousarray(weights.T)  # (features, classes), as sparse products read it

    def logits(self, texts: Sequence[Text], *, progress: Callable[[int], object] = lambda done: None) -> np.ndarray:
        """Return logits, float32, shape (texts, classes); `progress` is called with the number of texts of each batch.

        Texts are read whole. Raises `TypeError` if `texts` is one text, and `ModelError` if it was trained on pairs and
        gets single texts, or the other way round.
        """
        read = plain(texts, self.reads, self.format)
        logits = np.zeros((len(read), len(self.label_names)), np.float32)
        for start in range(0, len(read), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            logits[part] = self.ngrams.features(read[part]) @ self._columns + self.bias
            progress(len(logits[part]))
        return logits

    def warm_up(self) -> None:
        """Do nothing: the first call is as fast as any other."""

    def save(self, folder: Path) -> None:
        """Write the classifier into `folder`."""
        arrays = {
            "columns": self.ngrams.columns.astype(np.int32),
            "idf": self.ngrams.idf,
            "weights": self.weights,
            "bias": self.bias,
        }
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / LINEAR_WEIGHTS)
        settings: dict[str, Any] = {
            "label_names": list(self.label_names), "longest": LONGEST, "buckets": BUCKETS, "reads": self.reads,
        }  # fmt: skip
        if self.thresholds is not None:
            settings["thresholds"] = list(self.thresholds)
        write_json(folder / LINEAR_SETTINGS, settings)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the classifier in `folder`; raises `FolderError` if it is damaged, `ModelError` if it is none."""
        check_whole(folder, ANSWERING)
        place = folder / LINEAR_SETTINGS
        settings = checked(_Settings, read_json(place), str(place))
        if (settings["longest"], settings["buckets"]) != (LONGEST, BUCKETS) or len(settings["label_names"]) < 2:
            raise ModelError(f"{place}: not as this version of distill writes it", hint="distill baseline RECIPE")
        try:
            arrays = load_file(folder / LINEAR_WEIGHTS)
            columns, idf, weights, bias = (arrays[name] for name in ("columns", "idf", "weights", "bias"))
        except (OSError, SafetensorError, KeyError) as error:
            raise ModelError(f"{folder / LINEAR_WEIGHTS}: cannot be read: {one_line(error)}") from None
        classes = len(settings["label_names"])
        wanted = {"columns": (len(columns),), "idf": (len(columns),), "weights": (classes, len(columns)),
                  "bias": (classes,)}  # fmt: skip
        for name, shape in wanted.items():
            kind = np.int32 if name == "columns" else np.float32
            if arrays[name].shape != shape or arrays[name].dtype != kind:
                raise ModelError(f"{folder / LINEAR_WEIGHTS}: {name}: wants {shape} of {np.dtype(kind)}")
        if not len(columns) or columns[0] < 0 or columns[-1] >= BUCKETS or (np.diff(columns) <= 0).any():
            raise ModelError(f"{folder / LINEAR_WEIGHTS}: columns: wants rising numbers from 0 to below {BUCKETS}")
        thresholds = settings.get("thresholds")
        if thresholds is not None and (len(thresholds) != classes or not all(0 < one < 1 for one in thresholds)):
            raise ModelError(f"{place}: thresholds: wants {classes} numbers between 0 and 1")
        ngrams = WordNgrams(columns, idf)
        return cls(ngrams, weights, bias, settings["label_names"], thresholds, reads=settings.get("reads", "texts"))
