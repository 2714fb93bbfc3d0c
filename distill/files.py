"""Files that are whole or, whatever happens, unchanged."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.errors import FolderError, UserError

FULL = 2**20  # bytes: what no model fits into
PARTIAL = ".partial-"  # how the name of a folder begins in which something is being written


def write_text(path: Path, text: str) -> None:
    """Write a text file that is whole or, whatever happens, unchanged."""
    with atomic_path(path) as partial:
        with open(partial, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def as_json(value: Any) -> str:
    """Return JSON as it stands in our files; without NaN, which not every reader takes."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write JSON that is whole or, whatever happens, unchanged."""
    write_text(path, as_json(value))


def read_json(path: Path) -> Any:
    """Return the value in a JSON file; raises `FolderError` where it is missing or damaged."""
    if path.exists() and not path.is_file():  # a device or a pipe would be read for ever
        raise FolderError(f"{path}: no regular file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FolderError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise FolderError(f"{path}: not JSON ({error})") from None


def lies_in(path: Path, folder: Path) -> bool:
    """Say whether `path` lies in `folder`, also once links are followed; a ring of links lies nowhere."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # the second: a ring; the third: a null in the name
        return False


@contextlib.contextmanager
def room_for(folder: Path) -> Iterator[None]:
    """Where a library fails and the disk of `folder` is full, raise the `OSError` that says so: few libraries do."""
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
    """Yield a path beside `path` for a file or folder; it takes the place of `path` only if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=path.parent)) / path.name
    try:
        yield partial
        if path.is_dir() and not path.is_symlink():  # a folder cannot be replaced in one step
            os.replace(path, partial.parent / "old")
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial.parent, ignore_errors=True)
