"""Write files and folders atomically: after a kill or a power cut, the old or the new is there, never a half."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from distill.errors import FolderError, UserError

FULL = 2**20  # bytes of free space; with less, a disk counts as full
PARTIAL = ".partial-"  # prefix of the temporary folders in which something is being written
REPLACED = "replaced"  # in such a folder: the old files, moved out of the way of the new ones
COMING, READY = "coming", "ready"  # also there: the new files, and a mark that all of them are written


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def as_json(value: Any) -> str:
    """Return a value as the JSON text of our files; raises `ValueError` for NaN, which not every reader accepts."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, atomically."""
    write_text(path, as_json(value))


def read_json(path: Path) -> Any:
    """Return the value in a JSON file; raises `FolderError` if the file is missing or damaged."""
    if path.exists() and not path.is_file():  # reading a device or a pipe might never end
        raise FolderError(f"{path}: not a regular file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FolderError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise FolderError(f"{path}: not JSON ({error})") from None


def lies_in(path: Path, folder: Path) -> bool:
    """Say whether `path` is inside `folder` after links are followed; a ring of links is not."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # RuntimeError: a ring of links; ValueError: a null in the name
        return False


@contextlib.contextmanager
def naming_full_disk(folder: Path) -> Iterator[None]:
    """If a library fails in the block and the disk of `folder` is full, raise an `OSError` that says so.

    Few libraries say it themselves.
    """
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        if shutil.disk_usage(folder).free >= FULL:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or folder, which replaces `path` if the block ends without an error.

    The content is flushed to disk before it gets its name, so a power cut leaves either the old or the new.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=path.parent)) / path.name
    try:
        yield partial
        replace_path(partial, path)
    finally:
        recover(partial.parent)


def replace_path(new: Path, path: Path) -> None:
    """Flush a file or folder to disk, then move it to `path`; `new` must be in a PARTIAL folder.

    A folder cannot be replaced in one step. If a kill comes in between, `recover` puts the old one back.
    """
    sync(new)
    if path.is_dir() and not path.is_symlink():
        (new.parent / REPLACED).mkdir(exist_ok=True)
        os.replace(path, new.parent / REPLACED / path.name)
    os.replace(new, path)
    sync_folder(path.parent)


@contextlib.contextmanager
def atomic_files(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files move to `folder` if the block ends without an error: all or none of them.

    If a kill comes while they move, `recover` moves the rest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
    try:
        (partial / COMING).mkdir()
        yield partial / COMING
        sync(partial / COMING)
        (partial / READY).touch()
        sync(partial)
    finally:
        recover(partial)
    sync_folder(folder)


def replace_contents(new: Path, folder: Path, old: Iterable[Path]) -> None:
    """Move the content of the folder `new` into `folder` and remove the paths `old` from it: both, or neither.

    The caller has flushed the content of `new` to disk. If a kill comes, `recover` undoes or finishes the move.
    """
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
    (partial / REPLACED).mkdir()
    (partial / READY).touch()
    sync(partial)
    try:
        for path in old:
            if os.path.lexists(path):
                os.replace(path, partial / REPLACED / path.name)
        os.replace(new, partial / COMING)  # from here on, the new files win
        sync_folder(partial)
    finally:
        recover(partial)
    sync_folder(folder)


def recover(partial: Path) -> None:
    """Finish or undo what a PARTIAL folder holds, then remove the folder.

    If new files are complete, they move into place (`atomic_files`, `replace_contents`). If old files were moved away
    and the new ones never came, the old ones go back (`replace_path`, `replace_contents`).
    """
    # READY without COMING: a kill came before the switch in `replace_contents`, or during the removal below.
    if (partial / READY).is_file() and (partial / COMING).is_dir():
        # In the order in which they were written, so that the file that vouches for the others comes last.
        for ready in sorted((partial / COMING).iterdir(), key=lambda path: path.stat().st_mtime_ns):
            os.replace(ready, partial.parent / ready.name)
        remove(partial / REPLACED)  # first: if it alone were left, the next call would put the old files back
    else:
        for replaced in (partial / REPLACED).glob("*"):
            if not (partial.parent / replaced.name).exists():
                os.replace(replaced, partial.parent / replaced.name)
    shutil.rmtree(partial, ignore_errors=True)


def link_or_copy(source: Path | str, target: Path | str) -> None:
    """Give a file a second name (a hard link), or copy it if the file system or its owner does not allow that."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def needs_recovery(folder: Path) -> bool:
    """Say whether a kill has left something in `folder` that `recover` must finish or undo."""
    return any((left / name).exists() for left in folder.glob(f"{PARTIAL}*") for name in (READY, REPLACED))


def remove(folder: Path) -> None:
    """Remove a folder if it exists; raises `FolderError` if that fails, since the rest could be taken for new files."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise FolderError(f"{error.filename or folder}: cannot be removed: {error.strerror}") from None


def sync(path: Path) -> None:
    """Flush a file, or everything in a folder, to disk: before that, a power cut can leave a name without content."""
    if not path.is_dir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        return
    for inner in sorted(path.iterdir()):
        if not inner.is_symlink():
            sync(inner)
    sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk."""
    if os.name == "nt":  # Windows does it by itself, and cannot open a folder
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
