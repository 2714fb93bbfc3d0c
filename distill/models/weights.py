"""The weight files of a model: which they are, and their fingerprint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from distill.errors import ModelError, one_line
from distill.models.names import require_reachable
from distill.storage.files import lies_in

ONNX_WEIGHTS = "model.onnx"
OPENVINO_WEIGHTS = "openvino_model.xml"
ADAPTER = "adapter_config.json"
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


def weights_fingerprint(name: str) -> str:
    """Return the SHA-256, in hex, of the weight files of a Hub name or local folder, without loading the model.

    It covers names and bytes of `weight_files`, and nothing else beside them: what `sha256sum FILES | sha256sum` prints
    in the folder. Raises `ModelError` where there are no weights.
    """
    digest = hashlib.sha256()
    for path in weight_files(name):
        with open(path, "rb") as file:
            digest.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n".encode())
    return digest.hexdigest()


def weight_files(name: str) -> list[Path]:
    """Return the weight files of a Hub name (fetched if need be) or local folder, sorted by name.

    They are model.onnx and its data, or openvino_model.xml and .bin, where a local folder has them, else
    model.safetensors or its shards. Raises `ModelError` where there are none.
    """
    require_reachable(name)
    folder = Path(name)
    if folder.is_dir():
        graph = next((graph for graph in (ONNX_WEIGHTS, OPENVINO_WEIGHTS) if (folder / graph).is_file()), None)
        patterns = {ONNX_WEIGHTS: f"{ONNX_WEIGHTS}*", OPENVINO_WEIGHTS: "openvino_model.*"}
        pattern = patterns[graph] if graph else "model*.safetensors"
        files = [path for path in folder.glob(pattern) if path.is_file()]
        if not graph and (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
            files = list({*files, *shards_of(folder / SAFE_WEIGHTS_INDEX_NAME)})
    else:
        files = _hub_weights(name)
    if not files and folder.is_dir() and any(any(folder.glob(pattern)) for pattern in PICKLES):
        raise ModelError(
            f"{name}: its weights are a pickle, which can run code when it is read; only safetensors are loaded",
            hint=f"distill convert {name} --output DIR",
        )
    if not files and not folder.is_dir():
        raise ModelError(
            f"{name}: holds no weights in safetensors, the only kind that is loaded",
            hint=f"where it has pickles: hf download {name} --local-dir DIR, then distill convert DIR --output NEW",
        )
    if not files:
        raise ModelError(f"{name}: holds no weights ({SAFE_WEIGHTS_NAME}, {ONNX_WEIGHTS} or {OPENVINO_WEIGHTS})")
    return sorted(files, key=lambda path: path.name)


def shards_of(index: Path) -> list[Path]:
    """Return the files that an index of weights names; raises `ModelError` where one is not in its folder."""
    shards = _shard_names(index)
    for shard in shards:
        if not (index.parent / shard).is_file():
            raise ModelError(f"{index}: {shard} is not there; half downloaded?")
        if not _is_in(index.parent / shard, index.parent):
            raise ModelError(f"{index}: {shard} is a link to a file outside its folder")
    return [index.parent / shard for shard in shards]


def _is_in(file: Path, folder: Path) -> bool:
    # A hub's cache keeps the files of all revisions in one place, and of a revision links to them.
    folder = folder.resolve()
    blobs = folder.parent.parent / "blobs"
    return lies_in(file, folder) or (folder.parent.name == "snapshots" and lies_in(file, blobs))


def _shard_names(index: Path) -> list[str]:
    try:
        shards = sorted(set(map(str, json.loads(index.read_bytes())["weight_map"].values())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{index}: not an index of weights: {one_line(error)}") from error
    for shard in shards:
        if Path(shard).name != shard:
            raise ModelError(f"{index}: names weights outside its folder: {shard}")
    return shards


def _hub_weights(name: str) -> list[Path]:
    try:
        return [Path(cached_file(name, SAFE_WEIGHTS_NAME))]
    except OSError:  # in shards, or not there
        try:
            index = Path(cached_file(name, SAFE_WEIGHTS_INDEX_NAME))
            return [Path(cached_file(name, shard)) for shard in _shard_names(index)]
        except OSError:
            return []
