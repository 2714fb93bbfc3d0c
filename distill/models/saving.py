"""Save a configuration and a tokenizer so that transformers 4 reads the same from them as transformers 5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME

from distill.models.loading import TOKENIZER_CONFIG
from distill.storage.files import read_json, write_json

FULL, SLIDING = "full_attention", "sliding_attention"  # what transformers calls the two kinds of layers


def save(model: PreTrainedModel | PretrainedConfig, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a model, or only a configuration, and its tokenizer to `folder`.

    transformers 4 ignores keys of config.json that it does not know, and would answer differently without a word. So
    the base of rotary positions is also saved under its former names, `rope_theta` or ModernBERT's and Gemma's own.
    """
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, readable in ((CONFIG_NAME, _config), (TOKENIZER_CONFIG, _tokenizer)):
        settings = read_json(folder / name)
        write_json(folder / name, readable(settings))


def _config(settings: dict[str, Any]) -> dict[str, Any]:
    return settings | _older_keys(settings)


def _older_keys(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the keys that transformers 4 has for the rotary positions and for ModernBERT's kinds of layers."""
    rotary = settings.get("rope_parameters") or {}
    if settings["model_type"] in ("modernbert", "modernbert-decoder"):
        return {
            "global_attn_every_n_layers": _every(settings["layer_types"]),
            "global_rope_theta": rotary[FULL]["rope_theta"],
            "local_rope_theta": rotary[SLIDING]["rope_theta"],
        }
    if FULL in rotary and SLIDING in rotary:  # Gemma 3
        return {
            "rope_theta": rotary[FULL]["rope_theta"],
            "rope_local_base_freq": rotary[SLIDING]["rope_theta"],
            **_scaling(rotary[FULL]),
        }
    if "rope_theta" in rotary:
        return {"rope_theta": rotary["rope_theta"], **_scaling(rotary)}
    return {}


def _scaling(rotary: dict[str, Any]) -> dict[str, Any]:
    """Return the key for positions that are scaled to longer texts, if they are."""
    if rotary.get("rope_type", "default") == "default":
        return {}
    return {"rope_scaling": {name: value for name, value in rotary.items() if name != "rope_theta"}}


def _every(layer_types: list[str]) -> int | None:
    """Return the number n for which every n-th layer, from the first, reads the whole text.

    If the layers have no such order, return None, on which transformers 4 stops instead of taking them for others.
    """
    for every in range(1, len(layer_types) + 1):
        if all((kind == FULL) == (place % every == 0) for place, kind in enumerate(layer_types)):
            return every
    return None


def _tokenizer(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings under the names that both versions read, without those of the machine that loaded them."""
    kept = {name: value for name, value in settings.items() if name not in ("is_local", "local_files_only")}
    if isinstance(kept.get("extra_special_tokens"), list):
        kept["additional_special_tokens"] = kept.pop("extra_special_tokens")
    if kept.get("tokenizer_class") == "TokenizersBackend":  # a tokenizer without a class of its own
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    return kept
