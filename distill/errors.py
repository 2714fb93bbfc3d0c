"""Exceptions for everything that a user can put right, and functions that make messages safe to print.

The command line prints each problem of a `UserError` on its own line, then the hint, and exits with 2. Any other
exception is a bug in distill: it ends in a traceback and exit status 1.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
import shutil
from collections.abc import Collection, Iterator

# Control characters, halves of surrogate pairs, line separators, and marks that change the direction of writing.
STEERING = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069]")
TRAIN_EXTRA = "pip install 'distill[train]'"
SERVE_EXTRA = "pip install 'distill[serve]'"
# onnxruntime and onnxruntime-gpu are the same module. pip installs both, and the files of the one that comes last
# remain; if one is uninstalled, the files of both are gone. The extra brings the CUDA libraries.
GPU_LINES = (
    "pip install 'distill[gpu]'",
    "pip uninstall -y onnxruntime onnxruntime-gpu",
    "pip install onnxruntime-gpu",
)
GPU_EXTRA = " && ".join(GPU_LINES)
REFUSALS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.EEXIST,
    errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE,
}  # fmt: skip
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # EFBIG: a file over the limit of `ulimit -f`
TOO_MANY_DIGITS = "use sys.set_int_max_str_digits() to increase the limit"  # Python's message; users cannot do that


class UserError(Exception):
    """Something the user can put right: `problems`, one line each (place: rule, value), and an optional `hint`.

    Control characters, which may come from an untrusted file, are spelled out.
    """

    def __init__(self, *problems: str, hint: str | None = None):
        self.problems = tuple(map(printable, problems))
        self.hint = printable(hint) if hint else None
        super().__init__("\n".join(self.problems))


class RecipeError(UserError):
    """The recipe, or a `--set` on top of it, breaks a rule."""


class DataError(UserError):
    """The labelled texts cannot be read or used."""


class ModelError(UserError):
    """A model or its tokenizer cannot be loaded or does not fit the data."""


class FolderError(UserError):
    """A folder contains something that must not be changed, or lacks something that is needed."""


class DeviceError(UserError):
    """The requested device does not exist on this machine."""


class TrainingError(UserError):
    """Training failed in a way that other settings can mend."""


class ExportError(UserError):
    """A format could not be made or broke its bound, and was not kept."""


class PromiseError(UserError):
    """No cascade is sure to keep what it is to promise."""


class BudgetError(UserError):
    """No model is within the budget, or the budget cannot be checked."""


class Interrupted(Exception):
    """A signal stopped the work after a checkpoint was saved; `exit_code` is 128 plus the signal's number."""

    def __init__(self, signal_number: int, how_to_go_on: str):
        super().__init__(how_to_go_on)
        self.exit_code = 128 + signal_number


def refusal_of(error: BaseException) -> str | None:
    """Return what the operating system refused (e.g. disk space or a permission) if that caused `error`, else None."""
    seen: BaseException | None = error
    while seen is not None:
        # As the cause of another error only a full disk counts: other refusals may have been handled there.
        counted = REFUSALS if seen is error else NO_ROOM
        if isinstance(seen, OSError) and seen.errno in counted:
            return f"{seen.filename}: {seen.strerror}" if seen.filename else seen.strerror
        for full in map(os.strerror, NO_ROOM):  # libraries in Rust or C++ raise other types with this text
            if full in str(seen):
                return f"{full}: {one_line(seen)}"
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return None


def lacking(error: ModuleNotFoundError, what: str, cure: str = TRAIN_EXTRA) -> UserError | None:
    """Return the error of `what`, which needs a package of an extra that `cure` installs; None if it is our own."""
    package = (error.name or "distill").split(".")[0]
    return None if package == "distill" else UserError(f"{what} needs {package}: not installed", hint=cure)


@contextlib.contextmanager
def needing_training(what: str) -> Iterator[None]:
    """Within the block, raise `UserError` if a package of the extra `train` is missing, which `what` needs."""
    try:
        yield
    except ModuleNotFoundError as error:
        if known := lacking(error, what):
            raise known from error
        raise


def did_you_mean(word: str, known: Collection[str], otherwise: str = "one of") -> str:
    """Return a question with the known word that is most like `word`; if there is none, `otherwise` and all words."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else f"{otherwise} {', '.join(known)}"


def printable(text: str) -> str:
    """Return the text with control characters spelled out, so that untrusted text cannot control a terminal."""
    return STEERING.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(error: BaseException) -> str:
    """Return the first line of a library's error, plus the next if the first ends in a colon.

    If the error has no text, return its type.
    """
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):  # an entry for each file
        (_, place, cause), *others = error.args[0]
        return f"{place}: {cause}" + (f" (and of {len(others)} more files)" if others else "")
    if TOO_MANY_DIGITS in str(error):
        return "a number of thousands of digits"
    first, *rest = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {rest[0].strip()}" if rest and first.endswith(":") else first
