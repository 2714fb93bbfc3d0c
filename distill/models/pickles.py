"""A model whose weights are pickles to one whose weights are safetensors, without running what a pickle may hold."""

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

KEPT = ("*.json", "*.txt", "*.model", "README.md")  # what lies beside the weights and is data
MOST_NAMES = 4  # of the same numbers: a tensor that is tied has two names, or T5's four


def convert(model: Path, output: Path) -> Path:
    """Write the model folder `model`, its pickled weights as safetensors, to the new folder `output`; return that.

    Pickles are read by torch's unpickler for tensors alone (`weights_only=True`), which calls nothing else. Raises
    `ModelError` where they hold more than tensors or there are none, `FolderError` where `output` is there already.
    """
    load_config(str(model))  # names what is wrong where this is no model folder
    if output.exists():
        raise FolderError(f"{output}: is there already", hint="--output DIR")
    # Copies, since of two names of one tensor only one would be written, and not always the one that is looked for.
    weights = {name: one.detach().clone().contiguous() for file in _pickles(model) for name, one in _tensors(file)}
    with atomic_path(output) as partial:
        partial.mkdir()
        save_torch_state_dict(weights, partial)
        for file in (file for pattern in KEPT for file in model.glob(pattern)):
            # A link could bring a file of the user's own into what is then given away.
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
    except Exception as error:  # a damaged pickle raises whatever its reader stumbles over
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error).upper():
            raise ModelError(f"{file}: holds more than tensors, and was not run; get the model elsewhere") from error
        problem = f"{file}: cannot be read: damaged or half downloaded"
        if isinstance(error, pickle.UnpicklingError):  # whose text advises to read it all the same, code and all
            problem += ", or a pickle that torch.save did not write"
        else:
            problem += f": {one_line(error)}"
        raise ModelError(problem, hint="fetch it again") from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ModelError(f"{file}: not a table of named tensors")
    for name, tensor in found.items():
        if not isinstance(name, str) or STEERING.search(name):
            raise ModelError(f"{file}: wants names of letters and digits for its tensors, got {name!r:.100}")
        if not _is_plain(tensor):
            raise ModelError(f"{file}: {name:.100}: sparse, quantised or otherwise no plain numbers, as weights are")
    # A view can say one number again and again without end, and what is written says it each time.
    size, written = file.stat().st_size, sum(tensor.numel() * tensor.element_size() for tensor in found.values())
    if written > MOST_NAMES * size:
        raise ModelError(f"{file}: its {size} bytes repeat themselves to weights of {written} bytes, as no model does")
    return found.items()


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds a number at each of its places, of a kind that safetensors has too."""
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
        return False
    try:
        save({"": torch.empty(0, dtype=tensor.dtype)})
    except (KeyError, RuntimeError):
        return False
    return True
