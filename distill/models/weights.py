"""The weight files of a model: their paths and their fingerprint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from distill.errors import ModelError, one_line
from distill.models.names import is_baseline, require_reachable
from distill.storage.checksums import LINEAR_SETTINGS, LINEAR_WEIGHTS
from distill.storage.files import lies_in

SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
ONNX_WEIGHTS = "model.onnx"
OPENVINO_WEIGHTS = "openvino_model.xml"
ADAPTER = "adapter_config.json"
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


def weights_fingerprint(name: str) -> str:
    """Return the SHA-256, in hex, of the weight files of a Hub name or local folder, without loading the model.

    It covers the names and bytes of `weight_files` and nothing else. `sha256sum FILES | sha256sum` in the folder prints
    the same. Raises `ModelError` if there are no weights.
    """
    digest = hashlib.sha256()
    for path in weight_files(name):
        with open(path, "rb") as file:
            digest.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n".encode())
    return digest.hexdigest()


def teacher_digest(name: str) -> str:
    """Return the `weights_fingerprint` of a teacher, or the SHA-256 of a file of answers; raises `ModelError`."""
    if not Path(name).is_file():
        return weights_fingerprint(name)
    with open(name, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weight_files(name: str) -> list[Path]:
    """Return the weight files of a Hub name (fetched if need be) or local folder, sorted by name.

    In a local folder they are those of a baseline, else model.onnx and its data, or openvino_model.xml and .bin, if it
    has them. Otherwise they are model.safetensors or its shards. Raises `ModelError` if there are none.
    """
    if is_baseline(Path(name)):
        return [Path(name, LINEAR_SETTINGS), Path(name, LINEAR_WEIGHTS)]
    require_reachable(name)
    folder, index = Path(name), Path(name, SAFE_WEIGHTS_INDEX_NAME)
    if not folder.is_dir():
        files = _hub_weights(name)
    elif (folder / ONNX_WEIGHTS).is_file():
        files = folder.glob(f"{ONNX_WEIGHTS}*")
    elif (folder / OPENVINO_WEIGHTS).is_file():
        files = folder.glob("openvino_model.*")
    else:
        files = {*folder.glob("model*.safetensors"), *(shards_of(index) if index.is_file() else ())}
    if found := sorted(filter(Path.is_file, files), key=lambda path: path.name):
        return found
    if not folder.is_dir():
        raise ModelError(
            f"{name}: holds no weights in safetensors, the only format that is loaded",
            hint=f"if it has pickles: hf download {name} --local-dir DIR, then distill convert DIR --output NEW",
        )
    if any(any(folder.glob(pattern)) for pattern in PICKLES):
        raise ModelError(
            f"{name}: its weights are a pickle, which can run code when it is read; only safetensors are loaded",
            hint=f"distill convert {name} --output DIR",
        )
    raise ModelError(f"{name}: holds no weights ({SAFE_WEIGHTS_NAME}, {ONNX_WEIGHTS} or {OPENVINO_WEIGHTS})")


def shards_of(index: Path) -> list[Path]:
    """Return the files that an index of weights names; raises `ModelError` if one is not in its folder."""
    shards = _shard_names(index)
    for shard in shards:
        if not (index.parent / shard).is_file():
            raise ModelError(f"{index}: {shard} is not there; half downloaded?")
        if not _is_in(index.parent / shard, index.parent):
            raise ModelError(f"{index}: {shard} is a link to a file outside its folder")
    return [index.parent / shard for shard in shards]


def _is_in(file: Path, folder: Path) -> bool:
    # A Hub cache keeps the files of all revisions in the folder "blobs"; a revision holds only links to them.
    folder = folder.resolve()
    blobs = folder.parent.parent / "blobs"
    return lies_in(file, folder) or (folder.parent.name == "snapshots" and lies_in(file, blobs))


def _shard_names(index: Path) -> list[str]:
    try:
        shards = sorted(set(map(str, json.loads(index.read_bytes())["weight_map"].values())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{index}: not an index of weight files: {one_line(error)}") from error
    for shard in shards:
        if Path(shard).name != shard:
            raise ModelError(f"{index}: names weights outside its folder: {shard}")
    return shards


def _hub_weights(name: str) -> list[Path]:
    from transformers.utils.hub import cached_file  # not at the top: exports are read without transformers

    try:
        return [Path(cached_file(name, SAFE_WEIGHTS_NAME))]
    except OSError:  # sharded, or missing
        try:
            index = Path(cached_file(name, SAFE_WEIGHTS_INDEX_NAME))
            return [Path(cached_file(name, shard)) for shard in _shard_names(index)]
        except OSError:
            return []
