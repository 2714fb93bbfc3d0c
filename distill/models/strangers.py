"""What a stranger's files may not ask for: code or files from elsewhere, and sizes that their weights do not have."""

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

ATTENTIONS = ("eager", "sdpa", "flex_attention")  # transformers' own; any other can be a download that is run
IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")  # and the same with _ before, with _internal behind
VOCABULARIES = ("tokenizer_file", "vocab_file", "merges_file", "spm_file", "source_spm", "target_spm")
DTYPES = ("dtype", "torch_dtype")  # which transformers looks up in torch, whatever else there has that name
# What configurations make lists of, before there is any model.
COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers",
          "num_decoder_layers", "num_encoder_layers", "num_labels")  # fmt: skip
LARGEST_COUNT = 100_000
# What a new head, a pooler or tied weights may add to the weights that a file holds, each about.
SPARE_TENSORS = 2_000
SPARE_NUMBERS = 50_000_000
_BUILDING = threading.RLock()
MOST_TENSORS = 50_000  # of a model that is made of its configuration alone: some three thousand layers of BERT's


@dataclass(frozen=True)
class Weights:
    """How many tensors there are and how many numbers they hold: of weight files, or the most that a model may have."""

    tensors: int
    numbers: int
    source: str  # in words, for errors


def check_settings(settings: Any, name: str) -> None:
    """Raise `ModelError` if the config.json of the model `name` asks for code, for quantisers or for endless lists.

    `settings` is what it holds; what is no mapping is left to those who read it.
    """
    if not isinstance(settings, Mapping):
        return
    for key, value in _nested(settings):
        place = f"{name}: config.json: {key}"
        if key.lstrip("_").removesuffix("_internal") in IMPLEMENTATIONS:
            chosen = value.values() if isinstance(value, Mapping) else [value]
            if wrong := [one for one in chosen if one is not None and one not in ATTENTIONS]:
                raise ModelError(
                    f"{place}: {str(wrong[0])[:100]!r} may be code from a hub, which is not run; "
                    f"take the key away, or write one of {', '.join(ATTENTIONS)}"
                )
        if key in DTYPES:
            chosen = value.values() if isinstance(value, Mapping) else [value]
            if wrong := [one for one in chosen if one is not None and not _is_float(one)]:
                raise ModelError(f"{place}: wants a kind of numbers such as float32, got {wrong[0]!r:.100}")
        if key in COUNTS and isinstance(value, int | float) and value > LARGEST_COUNT:
            raise ModelError(f"{place}: wants at most {LARGEST_COUNT}, got {value}")
    if settings.get("quantization_config") is not None:
        raise ModelError(
            f"{name}: config.json: quantization_config: quantised weights are not read; name the model behind them"
        )
    if settings.get("transformers_weights"):  # others than those that are fingerprinted, wherever they lie
        raise ModelError(f"{name}: config.json: transformers_weights names weights of its own, which is not followed")


def check_tokenizer_settings(settings: Any, name: str) -> None:
    """Raise `ModelError` if the tokenizer_config.json of the model `name`, which holds `settings`, names files."""
    if not isinstance(settings, Mapping):
        return
    for key in ("init_inputs", "vocab", "merges", "fast_tokenizer_files"):
        named = settings.get(key) or ()
        strings = [named] if isinstance(named, str) else [one for one in named if isinstance(one, str)]
        # Which tokenizer.json there is goes by the version of transformers.
        if wrong := [one for one in strings if key != "fast_tokenizer_files" or Path(one).name != one]:
            raise ModelError(f"{name}: tokenizer_config.json: {key}: names a file, which is not read: {wrong[0][:100]}")
    for (
        key
    ) in VOCABULARIES:  # some versions of transformers open them; old savers left paths of their own machine there
        if isinstance(named := settings.get(key), str) and (Path(named).is_absolute() or ".." in Path(named).parts):
            with contextlib.suppress(OSError, ValueError):
                if Path(named).exists():
                    raise ModelError(f"{name}: tokenizer_config.json: {key}: names a file elsewhere: {named[:100]}")


def read_settings(path: Path) -> Any:
    """Return what a JSON file holds; None if it is not there or no JSON, which those say who read it in earnest."""
    try:
        return json.loads(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None


def weights_in(files: Sequence[Path]) -> Weights:
    """Return how much safetensors files hold, of which only the headers are read."""
    tensors = numbers = 0
    for file in files:
        with safe_open(file, "pt") as found:
            for key in found.keys():  # noqa: SIM118 - no mapping
                tensors += 1
                numbers += torch.Size(found.get_slice(key).get_shape()).numel()
    return Weights(tensors, numbers, "its weights hold")


def machine() -> Weights:
    """Return the most that a model may have which is made of a configuration alone: fp32 numbers in this memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**40
    return Weights(MOST_TENSORS, memory // 4, "this machine has memory for")


@contextlib.contextmanager
def within(held: Weights, name: str) -> Iterator[None]:
    """Within the block this thread may make a model on torch's device "meta" up to about twice as large as `held`.

    Raises `ModelError`, which calls it `name`, as soon as it is larger: a configuration can ask for layers without end.
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
        if made["tensors"] > 2 * held.tensors + SPARE_TENSORS or made["numbers"] > 2 * held.numbers + SPARE_NUMBERS:
            raise ModelError(
                f"{name}: its config.json makes a larger model than {held.source}: {held.tensors} tensors of "
                f"{held.numbers} numbers in all (it asks for {made['tensors']} or more, of {made['numbers']} or more)"
            )

    with _BUILDING:  # torch goes through its hooks while another thread would add one
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
    """Return the keys that have this value in the settings or in those within them."""
    return [key for key, one in _nested(settings) if type(one) is type(value) and one == value]


def _nested(settings: Any) -> Iterator[tuple[str, Any]]:
    """Each key and its value, of the settings and of those within them."""
    waiting = [settings]
    while waiting:
        one = waiting.pop()
        for key, value in one.items() if isinstance(one, Mapping) else enumerate(one):
            if isinstance(one, Mapping):
                yield str(key), value
            if isinstance(value, Mapping | list):
                waiting.append(value)
