"""The configuration of an n-gram model (see ngrams), without torch."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from distill.models.config import NGRAMS

LONGEST = 8  # tokens in an n-gram; hardly any longer one stands in two texts
LARGEST = 2**31 - 1  # number of rows


@strict
class NgramConfig(PreTrainedConfig):
    """The configuration of an `NgramForSequenceClassification`.

    `longest` is the number of tokens of the longest n-gram, `table` the number of rows that n-grams of two or more
    tokens share (each token has a row of its own), and `width` the length of a row.
    """

    model_type = NGRAMS

    vocab_size: int = 30_522
    longest: int = 2
    table: int = 2**20
    width: int = 8
    initializer_range: float = 0.1
    pad_token_id: int | None = None

    def validate_sizes(self) -> None:
        """Raise `ValueError` if a size cannot be used."""
        bounds = {"vocab_size": LARGEST, "longest": LONGEST, "table": LARGEST, "width": LARGEST}
        for name, most in bounds.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(f"{name}: wants a whole number from 1 to {most}, got {value!r:.50}")


AutoConfig.register(NGRAMS, NgramConfig, exist_ok=True)
