"""Checks of untrusted model folders: no code or files from elsewhere, no larger model than the weights hold."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.nn.modules import module as registration

from distill.errors import ModelError

ATTENTIONS = ("eager", "sdpa", "flex_attention")  # transformers' own; any other name can download code and run it
IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")  # also with a leading _ or the suffix _internal
VOCABULARIES = ("tokenizer_file", "vocab_file", "merges_file", "spm_file", "source_spm", "target_spm")
DTYPES = ("dtype", "torch_dtype")  # transformers takes the attribute of torch with this name, dtype or not
# Configurations make lists of these lengths before there is any model.
COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers",
          "num_decoder_layers", "num_encoder_layers", "num_labels")  # fmt: skip
LARGEST_COUNT = 100_000
# Roughly what a new head, a pooler or tied weights may add to the weights that a file holds.
SPARE_TENSORS = 2_000
SPARE_NUMBERS = 50_000_000
_BUILDING = threading.RLock()
MOST_TENSORS = 50_000  # in a model without weight files: some three thousand layers of BERT


@dataclass(frozen=True)
class SizeLimit:
    """How many tensors a model has and how many numbers are in them; a model of twice that size is still accepted."""

    tensors: int
    numbers: int
    source: str  # the limit in words, for errors


def check_settings(settings: Any, name: str) -> None:
    """Raise `ModelError` if the config.json of the model `name` asks for code, for quantizers or for endless lists.

    `settings` is its content. If that is not a mapping, transformers raises the error.
    """
    if not isinstance(settings, Mapping):
        return
    for key, value in _nested(settings):
        place = f"{name}: config.json: {key}"
        chosen = [one for one in (value.values() if isinstance(value, Mapping) else [value]) if one is not None]
        names_code = key.lstrip("_").removesuffix("_internal") in IMPLEMENTATIONS
        if names_code and (wrong := [one for one in chosen if one not in ATTENTIONS]):
            raise ModelError(
                f"{place}: {str(wrong[0])[:100]!r} may be code from the Hub, which is not run; "
                f"remove the key, or use one of {', '.join(ATTENTIONS)}"
            )
        if key in DTYPES and (wrong := [one for one in chosen if not _is_float(one)]):
            raise ModelError(f"{place}: wants a floating-point type such as float32, got {wrong[0]!r:.100}")
        if key in COUNTS and isinstance(value, int | float) and value > LARGEST_COUNT:
            raise ModelError(f"{place}: wants at most {LARGEST_COUNT}, got {value}")
    if settings.get("quantization_config") is not None:
        raise ModelError(
            f"{name}: config.json: quantization_config: quantized weights are not loaded; name the unquantized model"
        )
    if settings.get("transformers_weights"):  # other files than those that `weight_files` finds and fingerprints
        raise ModelError(f"{name}: config.json: transformers_weights: names other weight files, which are not loaded")


def check_tokenizer_settings(settings: Any, name: str) -> None:
    """Raise `ModelError` if `settings`, the content of tokenizer_config.json of the model `name`, names files."""
    if not isinstance(settings, Mapping):
        return
    for key in ("init_inputs", "vocab", "merges", "fast_tokenizer_files"):
        named = settings.get(key) or ()
        strings = [named] if isinstance(named, str) else [one for one in named if isinstance(one, str)]
        # fast_tokenizer_files lists a tokenizer.json for each version of transformers, beside the configuration.
        if wrong := [one for one in strings if key != "fast_tokenizer_files" or Path(one).name != one]:
            raise ModelError(f"{name}: tokenizer_config.json: {key}: names a file, which is not read: {wrong[0][:100]}")
    # Some versions of transformers open these files. Old tokenizers name paths of the machine that saved them: if no
    # such file is here, that does no harm.
    for key in VOCABULARIES:
        if isinstance(named := settings.get(key), str) and (Path(named).is_absolute() or ".." in Path(named).parts):
            with contextlib.suppress(OSError, ValueError):
                if Path(named).exists():
                    raise ModelError(f"{name}: tokenizer_config.json: {key}: names a file elsewhere: {named[:100]}")


def read_settings(path: Path) -> Any:
    """Return what a JSON file holds; None if it is missing or not JSON (the library that reads it then says so)."""
    try:
        return json.loads(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None


def file_limit(files: Sequence[Path]) -> SizeLimit:
    """Return the limit for a model with weight files: what these safetensors files hold. Only headers are read."""
    tensors = numbers = 0
    for file in files:
        with safe_open(file, "pt") as found:
            for key in found.keys():  # noqa: SIM118 - no mapping
                tensors += 1
                numbers += torch.Size(found.get_slice(key).get_shape()).numel()
    return SizeLimit(tensors, numbers, "its weights hold")


def memory_limit() -> SizeLimit:
    """Return the limit for a model without weight files: as many fp32 numbers as fit into this machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**40
    return SizeLimit(MOST_TENSORS, memory // 4, "this machine has memory for")


@contextlib.contextmanager
def limit_size(limit: SizeLimit, name: str) -> Iterator[None]:
    """Within the block, limit what this thread builds on torch's device "meta" to about twice `limit`.

    Raises `ModelError` about the model `name` as soon as it is larger: a configuration can ask for endless layers.
    """
    made = {"tensors": 0, "numbers": 0}
    thread = threading.get_ident()

    def count(module: torch.nn.Module, key: str, tensor: torch.Tensor | None) -> None:
        if tensor is None or not tensor.is_meta or threading.get_ident() != thread:
            return
        if not tensor.numel() and isinstance(tensor, torch.nn.Parameter):
            raise ModelError(f"{name}: its config.json makes a layer ({type(module).__name__}) whose {key} is empty")
        made["tensors"] += 1
        made["numbers"] += tensor.numel()
        if made["tensors"] > 2 * limit.tensors + SPARE_TENSORS or made["numbers"] > 2 * limit.numbers + SPARE_NUMBERS:
            raise ModelError(
                f"{name}: its config.json makes a larger model than {limit.source}: {limit.tensors} tensors with "
                f"{limit.numbers} numbers in all (it asks for at least {made['tensors']} with {made['numbers']})"
            )

    with _BUILDING:  # torch iterates over its hooks, so no other thread may add one meanwhile
        hooks = [
            registration.register_module_parameter_registration_hook(count),
            registration.register_module_buffer_registration_hook(count),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _is_float(name: Any) -> bool:
    kind = getattr(torch, name.removeprefix("torch."), None) if isinstance(name, str) else None
    return isinstance(kind, torch.dtype) and kind.is_floating_point


def keys_of(value: Any, settings: Any) -> list[str]:
    """Return the keys that have this value in the settings, nested ones included."""
    return [key for key, one in _nested(settings) if type(one) is type(value) and one == value]


def _nested(settings: Any) -> Iterator[tuple[str, Any]]:
    """Yield each key and its value, nested settings included."""
    waiting = [settings]
    while waiting:
        one = waiting.pop()
        for key, value in one.items() if isinstance(one, Mapping) else enumerate(one):
            if isinstance(one, Mapping):
                yield str(key), value
            if isinstance(value, Mapping | list):
                waiting.append(value)
