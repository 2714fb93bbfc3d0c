"""Convert pickled weights to safetensors without running the code that a pickle may hold."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save
from transformers.utils import WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from distill.errors import STEERING, FolderError, ModelError, one_line
from distill.models.loading import load_config
from distill.models.weights import shards_of
from distill.storage.files import atomic_path, lies_in

KEPT = ("*.json", "*.txt", "*.model", "README.md")  # the files beside the weights that are data, not code
MOST_NAMES = 4  # for the same numbers: a tied tensor has two names, in T5 four


def convert(model: Path, output: Path) -> Path:
    """Write a copy of the folder `model` to the new folder `output`, with safetensors for pickles; return `output`.

    Pickles are read by torch's unpickler for tensors (`weights_only=True`), which calls nothing else. Raises
    `ModelError` if they hold more than tensors or there are none, `FolderError` if `output` already exists.
    """
    load_config(str(model))  # raises an error with the reason if this is no model folder
    if output.exists():
        raise FolderError(f"{output}: already exists", hint="--output DIR")
    # Copies, because a tensor with two names would be written only once, and maybe not under the name the model needs.
    weights = {name: one.detach().clone().contiguous() for file in _pickles(model) for name, one in _tensors(file)}
    with atomic_path(output) as partial:
        partial.mkdir()
        save_torch_state_dict(weights, partial)
        for file in (file for pattern in KEPT for file in model.glob(pattern)):
            # A link could copy a private file of the user into a folder that is then published.
            if file.name != WEIGHTS_INDEX_NAME and file.is_file() and lies_in(file, model):
                shutil.copyfile(file, partial / file.name)
    return output


def _pickles(model: Path) -> list[Path]:
    index = model / WEIGHTS_INDEX_NAME
    if (model / WEIGHTS_NAME).is_file():
        return [model / WEIGHTS_NAME]
    if not index.is_file():
        raise ModelError(f"{model}: holds neither {WEIGHTS_NAME} nor {WEIGHTS_INDEX_NAME}: there is nothing to convert")
    return shards_of(index)


def _tensors(file: Path) -> Iterable[tuple[str, torch.Tensor]]:
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise any exception
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error).upper():
            raise ModelError(f"{file}: holds more than tensors, and was not run; get the model elsewhere") from error
        reason = f": {one_line(error)}"
        if isinstance(error, pickle.UnpicklingError):  # its own text advises to load the file with its code
            reason = ", or a pickle that torch.save did not write"
        problem = f"{file}: cannot be read: damaged or half downloaded{reason}"
        raise ModelError(problem, hint="fetch it again") from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ModelError(f"{file}: not a table of named tensors")
    for name, tensor in found.items():
        if not isinstance(name, str) or STEERING.search(name):
            raise ModelError(f"{file}: wants names of letters and digits for its tensors, got {name!r:.100}")
        if not _is_plain(tensor):
            raise ModelError(f"{file}: {name:.100}: wants a dense tensor of a type that safetensors has")
    # A view can repeat one number without end, and safetensors would write every repetition.
    size, written = file.stat().st_size, sum(tensor.nbytes for tensor in found.values())
    if written > MOST_NAMES * size:
        raise ModelError(f"{file}: its {size} bytes would expand to weights of {written} bytes, more than a model's do")
    return found.items()


def _is_plain(tensor: torch.Tensor) -> bool:
    """Say whether a tensor is dense, in memory, and of a type that safetensors has."""
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
        return False
    try:
        save({"": torch.empty(0, dtype=tensor.dtype)})
    except (KeyError, RuntimeError):
        return False
    return True
