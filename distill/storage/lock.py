"""Lock a folder for one process; the lock ends with the process, even if it is killed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from distill.errors import FolderError, one_line
from distill.storage.files import PARTIAL, recover

LOCK = ".lock"  # an empty file; the lock on it is the operating system's
NEXT = ".next"  # in the folder of a finished run: the run that will replace it


def is_ours(name: str) -> bool:
    """Say whether a file name is one that a run makes before it writes anything of its own."""
    return name.startswith((LOCK, PARTIAL))


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Lock a folder for this process, and clean up what killed processes left half-written.

    Raises `FolderError` if another process holds the lock, or if the folder cannot be written.
    """
    if (folder / LOCK).is_symlink():  # taking the lock would empty the file that the link points to
        raise FolderError(f"{folder / LOCK}: a link; remove it")
    held = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=0)
    except Timeout:
        raise FolderError(f"{folder}: another run is at work in it", hint="wait, or --output DIR") from None
    except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
        raise FolderError(f"{folder}: cannot be written: {one_line(error)}", hint="--output DIR") from None
    try:
        for run in (folder, folder / NEXT):
            for left in (*run.glob(f"{PARTIAL}*"), *run.glob(f"checkpoints/*/{PARTIAL}*")):
                recover(left)
        yield
    finally:
        held.release()


def check_writable(folder: Path) -> None:
    """Raise `FolderError` if a folder could not be made or written, without touching anything.

    The check is on the folder, or on the nearest parent that exists: it must be a folder that may be written.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    reason = f"{there} is not a folder" if not there.is_dir() else os.strerror(errno.EACCES)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise FolderError(f"{folder}: cannot be written: {reason}", hint="--output DIR")
