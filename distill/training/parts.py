"""What cutting long texts may cost: how well a linear model tells the classes apart by each part of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from distill.data.encoding import Kept, Truncation, excerpts
from distill.data.splits import Splits, drawn, gold_labels_of
from distill.decisions import answers_of, are_equal
from distill.machine.progress import progress_line
from distill.measuring.metrics import accuracy_interval
from distill.models.thresholds import default_thresholds
from distill.training.baseline import fit_linear, fit_word_ngrams

MOST_TRAIN, MOST_VALIDATION = 5_000, 2_000  # texts: enough for the order of the parts
PARTS: tuple[Kept, ...] = ("head", "tail", "head_tail")
STRENGTH = 10.0  # scikit-learn's C; the parts are compared under one setting


def accuracy_by_part(
    splits: Splits, tokenizer: PreTrainedTokenizerBase, max_tokens: int, *, seed: int
) -> list[dict[str, Any]]:
    """Return the validation accuracy of the baseline's model on whole texts and on each part of `max_tokens` tokens.

    Each entry has `part` ("whole" or a value of data.truncation), `accuracy` (of several labels, the share of the texts
    with exactly the right ones) and `accuracy_ci95`. Texts are drawn with `seed` if there are many. Empty if the texts
    drawn are of one class.
    """
    train, validation = drawn(splits.train, MOST_TRAIN, seed), drawn(splits.validation, MOST_VALIDATION, seed)
    labels, gold_labels = map(gold_labels_of, (train, validation))
    if len(np.unique(labels, axis=0)) < 2:
        return []
    whole = train["text"][:], validation["text"][:]
    truncations = {kept: Truncation(max_tokens, kept) for kept in PARTS}
    thresholds = default_thresholds(splits.task, len(splits.label_names))
    found = []
    with progress_line("what cutting may cost", 1 + len(truncations), "fit") as line:
        for part, truncation in ("whole", None), *truncations.items():
            texts, held_out = (excerpts(tokenizer, some, truncation) if truncation else some for some in whole)
            ngrams, features = fit_word_ngrams(texts)
            weights, bias = fit_linear(features, labels, len(splits.label_names), STRENGTH)
            answers = answers_of(ngrams.features(held_out) @ weights.T + bias, thresholds)
            right = int(are_equal(answers, gold_labels).sum())
            entry = {"part": part, "accuracy": right / len(gold_labels)}
            found.append(entry | {"accuracy_ci95": accuracy_interval(right, len(gold_labels))})
            line.update(1)
    return found
