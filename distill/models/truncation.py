"""The part of a long text that a model was trained to read, kept in its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from distill.data.encoding import Kept
from distill.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

CONFIG_KEY = "distill_truncation"  # in the model's config.json
Reads = Literal["texts", "pairs"]


def reads_of(config: PretrainedConfig) -> Reads | None:
    """Return what a model was trained on by distill; None if somebody else trained it, so that this is not known."""
    kept = getattr(config, CONFIG_KEY, None)
    return None if kept is None else "pairs" if kept == "longest_first" else "texts"


def kept_part(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> Kept:
    """Return which part of a long text a model reads: what its configuration says, or else its tokenizer's side.

    Raises `ModelError` if it names no such part.
    """
    value = getattr(config, CONFIG_KEY, None)
    if value is None:
        return "tail" if tokenizer.truncation_side == "left" else "head"
    if value not in get_args(Kept):
        known = ", ".join(get_args(Kept))
        raise ModelError(f"{config.name_or_path}: config.json: {CONFIG_KEY} must be one of {known}, got {value!r:.50}")
    return value
