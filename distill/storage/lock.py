"""The lock of a folder, which the death of its process opens."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from distill.errors import FolderError, one_line
from distill.storage.files import (
    PARTIAL,
    clear_away,
)

LOCK = ".lock"  # what it holds is nothing, the lock is the system's
NEXT = ".next"  # in the folder of a finished run: the run that takes its place once it has finished too


def is_ours(name: str) -> bool:
    """Whether a file of a folder is one that a run was only about to begin with."""
    return name.startswith((LOCK, PARTIAL))


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a folder for this process, whose death lets go of it, and clear away what killed ones left half-written.

    Raises `FolderError` where another process has it, or where it cannot be written.
    """
    if (folder / LOCK).is_symlink():  # taking the lock would empty what it leads to
        raise FolderError(f"{folder / LOCK}: a link; remove it")
    held = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=0)
    except Timeout:
        raise FolderError(f"{folder}: another run is at work in it", hint="wait, or --output DIR") from None
    except (OSError, NotImplementedError) as error:  # the second: a file system that knows no locks
        raise FolderError(f"{folder}: cannot be written: {one_line(error)}", hint="--output DIR") from None
    try:
        for left in (*folder.glob(f"{PARTIAL}*"), *(folder / NEXT).glob(f"{PARTIAL}*")):
            clear_away(left)
        yield
    finally:
        held.release()


def check_writable(folder: Path) -> None:
    """Raise `FolderError` if what is there of a folder's path is no folder or may not be written; touch nothing."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    reason = f"{there} is no folder" if not there.is_dir() else os.strerror(errno.EACCES)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise FolderError(f"{folder}: cannot be written: {reason}", hint="--output DIR")
