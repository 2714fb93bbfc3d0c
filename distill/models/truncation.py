"""The part of a long text that a model was trained to read, kept in its configuration."""

from __future__ import annotations

from typing import get_args

from transformers import PretrainedConfig

from distill.data.encoding import Kept
from distill.errors import ModelError

CONFIG_KEY = "truncation"  # in the model's config.json


def kept_part(config: PretrainedConfig) -> Kept | None:
    """Return which part of a long text the configuration says that the model reads; None if it says nothing.

    Raises `ModelError` if it names no such part.
    """
    value = getattr(config, CONFIG_KEY, None)
    if value is not None and value not in get_args(Kept):
        known = ", ".join(get_args(Kept))
        raise ModelError(f"{config.name_or_path}: config.json: {CONFIG_KEY} must be one of {known}, got {value!r:.50}")
    return value
