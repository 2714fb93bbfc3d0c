"""The origin of a run: what it depends on besides its recipe, and whether it can be repeated byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from distill.data.splits import Splits
from distill.machine.devices import Device
from distill.machine.provenance import TRAINED_WITH, versions
from distill.models.loading import config_fingerprint
from distill.models.weights import weights_fingerprint
from distill.training.tokens import tokenizer_fingerprint

NOT_ON_A_GPU = "not byte for byte: some GPU kernels add in an order that changes from run to run"


def origin_of(splits: Splits, device: Device, **models: str) -> dict[str, str]:
    """Return what a run depends on besides its recipe: versions, numbers and fingerprints by name.

    `models` holds, by role, the fingerprints of its teachers and of the model that it starts from.
    """
    known = versions()
    threads = {"threads": str(torch.get_num_threads())} if device == "cpu" else {}  # on a GPU they change nothing
    return {
        **models,
        **{f"data.{split}": digest for split, digest in splits.fingerprints.items()},
        **{name: known[name] for name in TRAINED_WITH},
        "device": device,
        "processes": str(PartialState().num_processes),
        **threads,
    }


def base_fingerprint(name: str, tokenizer: PreTrainedTokenizerBase, *, pretrained: bool = True) -> str:
    """Return a SHA-256 of the model that a run starts from: configuration, tokenizer and, if `pretrained`, weights."""
    parts = [config_fingerprint(name), tokenizer_fingerprint(tokenizer)]
    parts += [weights_fingerprint(name)] if pretrained else []
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def repeatable(device: Device, processors: Sequence[str]) -> str:
    """Return in words whether the run's recipe.yaml reproduces the same bytes, and under which conditions."""
    if device == "cuda":
        return NOT_ON_A_GPU
    if len(processors) > 1:
        return f"not byte for byte: it was trained on more than one kind of CPU ({', '.join(processors)})"
    return (
        "byte for byte from recipe.yaml, which holds the precision, with the same versions, kind of CPU, threads and "
        "processes"
    )
