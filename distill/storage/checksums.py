"""Seal a folder with the checksums of its files, and check later that they have not changed."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

from distill.errors import FolderError
from distill.storage.files import lies_in, read_json, sync, sync_folder, write_json

LINEAR_SETTINGS, LINEAR_WEIGHTS = "linear.json", "linear.safetensors"  # of a baseline
CASCADE = "cascade.json"  # of a cascade
SEAL = "checksums.json"  # written last, when every file that it covers is there
NEVER_SEALED = "was not written to its end"
# The files that decide a model's answers: weights, configuration, tokenizer.
ANSWERING = (
    "config.json", "model*.safetensors", "model.safetensors.index.json", "model.onnx*", "openvino_model.*",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "linear.*",
)  # fmt: skip
# The model files that libraries open by name if they find them.
MODEL_FILES = (
    "config.json", "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "model.onnx",
    "model.onnx.data", "openvino_model.xml", "openvino_model.bin", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model",
    "sentencepiece.bpe.model", "chat_template.jinja", LINEAR_SETTINGS, LINEAR_WEIGHTS,
)  # fmt: skip


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Say whether a file name matches one of the shell patterns."""
    return any(fnmatch(name, pattern) for pattern in patterns)


def seal(folder: Path, names: Sequence[str] = ("*",), *, coming: Mapping[str, str] | None = None) -> None:
    """Write checksums.json: the SHA-256 of each file in the folder that matches `names`.

    "*" includes the files of subfolders. Files that match no pattern may still change. `coming` holds the texts of
    files that the caller writes right after, by name.

    Flushes the files to disk first and gives all of them the default mode, since some libraries make files that only
    their owner can read.
    """
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name[0] != "." and path.name != SEAL]
    files = [path for path in files if matches(path.name, names)]
    if "*" in names:  # a sharded checkpoint does not load without its subfolders and the hidden file in them
        files += [path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent != folder]
    for path in files:
        path.chmod(_mode())
        sync(path)
    for inner in {path.parent for path in files} | {folder}:
        sync_folder(inner)
    texts = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in (coming or {}).items()}
    write_json(folder / SEAL, {path.relative_to(folder).as_posix(): sha256(path) for path in files} | texts)


def _mode() -> int:
    """The mode that this process's umask gives to a new file."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def damage_of(folder: Path, names: Sequence[str] = ("*",)) -> str | None:
    """Return what is wrong with the files of a sealed folder that match `names`; None if all are unchanged."""
    if not (folder / SEAL).is_file():
        return NEVER_SEALED
    try:
        sealed = {str(name): digest for name, digest in read_json(folder / SEAL).items()}
    except (FolderError, AttributeError):
        return f"{SEAL} is damaged"
    for name, digest in sealed.items():
        if not matches(name, names):
            continue
        if not lies_in(folder / name, folder):  # somebody else may have written checksums.json
            return f"{SEAL} names a file outside the folder: {name[:100]}"
        if (folder / name).exists() and not (folder / name).is_file():  # reading a device might never end
            return f"{name} is not a regular file"
        try:
            found = sha256(folder / name)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if found != digest:
            return f"{name} is damaged (its checksum has changed)"
    # A library would load a model file that was added later, instead of the sealed ones.
    for path in sorted(folder.iterdir()):
        is_loaded = matches(path.name, MODEL_FILES) and matches(path.name, names)
        if is_loaded and path.name not in sealed and path.is_file():
            return f"{path.name} is not in {SEAL}: it was added later"
    return None


def fingerprint(folder: Path, names: Sequence[str]) -> str:
    """Return a SHA-256, in hex, of the names and contents of the folder's files that match `names`."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and matches(path.name, names))
    return hashlib.sha256("".join(f"{sha256(path)}  {path.name}\n" for path in files).encode()).hexdigest()


def check_whole(folder: Path, names: Sequence[str]) -> None:
    """Raise `FolderError` if the folder was sealed and a file that matches `names` has changed since."""
    damage = damage_of(folder, names) if (folder / SEAL).is_file() else None
    if damage:
        hint = f"restore it or make it again; if you made this change yourself, delete {folder / SEAL}"
        raise FolderError(f"{folder}: {damage}", hint=hint)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex; one that has not changed is read once."""
    found = path.stat()
    return _digest(path, found.st_size, found.st_mtime_ns, found.st_ino)


@functools.cache
def _digest(path: Path, size: int, mtime_ns: int, inode: int) -> str:
    """The SHA-256 of a file; size, time and inode make the cache hold only as long as the file has not changed."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
