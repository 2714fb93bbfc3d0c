"""A folder sealed with the checksums of its files, so that damage is named instead of used."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

from distill.errors import FolderError
from distill.storage.files import lies_in, read_json, sync, sync_folder, write_json

SEAL = "checksums.json"  # written when all that it covers is there
NEVER_SEALED = "was not written to its end"
# What decides a model's answers: weights, configuration, tokenizer.
ANSWERING = (
    "config.json", "model*.safetensors", "model.safetensors.index.json", "model.onnx*", "openvino_model.*",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model",
)  # fmt: skip


# The files of a model that libraries open by these names, whatever else is there.
MODEL_FILES = (
    "config.json", "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "model.onnx",
    "model.onnx.data", "openvino_model.xml", "openvino_model.bin", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model",
    "sentencepiece.bpe.model", "chat_template.jinja",
)  # fmt: skip


def seal(folder: Path, names: Sequence[str] = ("*",), *, coming: Mapping[str, str] | None = None) -> None:
    """Write the files of a folder that match `names`, each with its SHA-256, into it; "*" goes into its folders.

    All others stay free to change; `coming` are texts of files that are written right after. The files are brought to
    the disk first, and given one mode: libraries write some that nobody else may read beside others that all may.
    """
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name[0] != "." and path.name != SEAL]
    files = [path for path in files if any(fnmatch(path.name, pattern) for pattern in names)]
    if "*" in names:  # a sharded checkpoint has folders of its own, with a hidden file that they are nothing without
        files += [path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent != folder]
    for path in files:
        path.chmod(_mode())
        sync(path)
    for inner in {path.parent for path in files} | {folder}:
        sync_folder(inner)
    texts = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in (coming or {}).items()}
    write_json(folder / SEAL, {path.relative_to(folder).as_posix(): _sha256(path) for path in files} | texts)


def _mode() -> int:
    """The mode of a new file, as this process's umask has it."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def damage_of(folder: Path, names: Sequence[str] = ("*",)) -> str | None:
    """Return what is wrong with the files of a sealed folder that match `names`; None where each is as it was."""
    if not (folder / SEAL).is_file():
        return NEVER_SEALED
    try:
        sealed = {str(name): digest for name, digest in read_json(folder / SEAL).items()}
    except (FolderError, AttributeError):
        return f"{SEAL} is damaged"
    for name, digest in sealed.items():
        if not any(fnmatch(name, pattern) for pattern in names):
            continue
        if outside := _leads_outside(folder, name):
            return outside
        try:
            found = _sha256(folder / name)
        except OSError as error:  # it is gone, or the disk no longer gives it
            return f"{name} cannot be read ({error.strerror})"
        if found != digest:
            return f"{name} is damaged (its checksum has changed)"
    # A file that came later would answer in the place of those that are vouched for.
    for path in sorted(folder.iterdir()):
        is_wanted = all(any(fnmatch(path.name, one) for one in patterns) for patterns in (MODEL_FILES, names))
        if is_wanted and path.name not in sealed and path.is_file():
            return f"{path.name} is not in {SEAL}: it came later"
    return None


def _leads_outside(folder: Path, name: str) -> str | None:
    """What is wrong with a name that a stranger may have written: a device would be read for ever."""
    if not lies_in(folder / name, folder):
        return f"{SEAL} names a file outside the folder: {name[:100]}"
    if (folder / name).exists() and not (folder / name).is_file():
        return f"{name} is no regular file"
    return None


def check_whole(folder: Path, names: Sequence[str]) -> None:
    """Raise `FolderError` where a file that matches `names` has changed since the folder was sealed, if it ever was."""
    damage = damage_of(folder, names) if (folder / SEAL).is_file() else None
    if damage:
        hint = f"restore it or make it again; where the change is yours, delete {folder / SEAL}"
        raise FolderError(f"{folder}: {damage}", hint=hint)


def _sha256(path: Path) -> str:
    found = path.stat()
    return _digest(path, found.st_size, found.st_mtime_ns, found.st_ino)


@functools.cache
def _digest(path: Path, size: int, mtime_ns: int, inode: int) -> str:
    """Of a file that has not changed since, once in a process: a model is looked at several times."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
