"""Files that are whole or, whatever happens, unchanged."""

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

FULL = 2**20  # bytes: what no model fits into
PARTIAL = ".partial-"  # how the name of a folder begins in which something is being written
REPLACED = "replaced"  # in such a folder: what was moved away for something new
COMING, READY = "coming", "ready"  # there too: files that come together, and that all of them are there


def write_text(path: Path, text: str) -> None:
    """Write a text file that is whole or, whatever happens, unchanged."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


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
    """Yield a path beside `path` for a file or folder; it takes the place of `path` only if the block ends well.

    What was written is on the disk before its name is, so that a power cut leaves the old or the new.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=path.parent)) / path.name
    try:
        yield partial
        take_place(partial, path)
    finally:
        clear_away(partial.parent)


def take_place(new: Path, place: Path) -> None:
    """Put a file or folder, which lies in a folder of PARTIAL, in the place of another, once it is on the disk.

    A folder cannot be replaced in one step. If that is cut in two, `clear_away` puts the old one back.
    """
    sync(new)
    if place.is_dir() and not place.is_symlink():
        (new.parent / REPLACED).mkdir(exist_ok=True)
        os.replace(place, new.parent / REPLACED / place.name)
    os.replace(new, place)
    sync_folder(place.parent)


@contextlib.contextmanager
def together(folder: Path) -> Iterator[Path]:
    """Yield a folder whose files come to `folder` together, once the block ends well: all of them, or none.

    If a kill comes while they move, `clear_away` brings the rest.
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
        clear_away(partial)
    sync_folder(folder)


def take_places(new: Path, folder: Path, old: Iterable[Path]) -> None:
    """Put what the folder `new` holds into `folder`, and remove `old`, which lies there: all of it, or nothing.

    What `new` holds is on the disk already. If a kill comes, `clear_away` puts the old back or ends it.
    """
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
    (partial / REPLACED).mkdir()
    (partial / READY).touch()
    sync(partial)
    try:
        for path in old:
            if os.path.lexists(path):
                os.replace(path, partial / REPLACED / path.name)
        os.replace(new, partial / COMING)  # from here on it is the new that stays
        sync_folder(partial)
    finally:
        clear_away(partial)
    sync_folder(folder)


def clear_away(partial: Path) -> None:
    """Remove a folder of PARTIAL, after what was decided in it: what was ready comes (`together`, `take_places`).

    What was moved away for something that never came goes back (`take_place`, `take_places`).
    """
    # It may have been killed while it removed a folder of which all had come.
    if (partial / READY).is_file() and (partial / COMING).is_dir():
        # As they were written, so that what vouches for the others comes last.
        for ready in sorted((partial / COMING).iterdir(), key=lambda path: path.stat().st_mtime_ns):
            os.replace(ready, partial.parent / ready.name)
        remove(partial / REPLACED)  # first: alone it would look like what has to go back
    else:
        for replaced in (partial / REPLACED).glob("*"):
            if not (partial.parent / replaced.name).exists():
                os.replace(replaced, partial.parent / replaced.name)
    shutil.rmtree(partial, ignore_errors=True)


def is_cut(folder: Path) -> bool:
    """Say whether a kill has left in `folder` what `clear_away` has to decide."""
    return any((left / name).exists() for left in folder.glob(f"{PARTIAL}*") for name in (READY, REPLACED))


def remove(folder: Path) -> None:
    """Remove a folder, if it is there; raises `FolderError` if that fails, since what is left could pass for new."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise FolderError(f"{error.filename or folder}: cannot be removed: {error.strerror}") from None


def sync(path: Path) -> None:
    """Bring a file, or all of a folder, to the disk: until then a power cut may leave a name and nothing behind it."""
    for inner in sorted(path.iterdir()) if path.is_dir() else ():
        if not inner.is_symlink():
            sync(inner)
    if path.is_dir():
        sync_folder(path)
    else:
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    if os.name == "nt":  # which keeps them itself, and opens no folders
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
