"""What a user can get wrong, as exception classes.

The command line prints each problem of a `UserError` on a line of its own, then the hint, and exits with 2. Anything
else that escapes is our own bug: a traceback and exit 1.
"""

from __future__ import annotations

import errno
import os
import re
import shutil

# Control characters, halves of surrogate pairs, and what breaks lines or turns the direction of writing.
STEERING = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069]")
REFUSALS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.EEXIST,
    errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE,
}  # fmt: skip


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last: of a file, as `ulimit -f` sets it
OF_DIGITS = "use sys.set_int_max_str_digits() to increase the limit"  # which nobody can from here


class UserError(Exception):
    """Something the user can put right: `problems`, one line each (place: rule, value, cure), and perhaps a `hint`.

    Control characters in them, which a stranger's file may hold, are spelt out.
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
    """An output folder holds something that must not be touched, or lacks something that is needed."""


class DeviceError(UserError):
    """The device that was asked for is not there."""


class TrainingError(UserError):
    """Training came to nothing in a way that other settings mend."""


class ExportError(UserError):
    """A format could not be made, or broke its bound; what it would have been is not on disk."""


class BudgetError(UserError):
    """No model is within what the user can afford, or it cannot be told."""


class Interrupted(Exception):
    """A signal stopped the work after a checkpoint was saved; `exit_code` is 128 plus the signal's number."""

    def __init__(self, signal_number: int, how_to_go_on: str):
        super().__init__(how_to_go_on)
        self.exit_code = 128 + signal_number


def refusal_of(error: BaseException) -> str | None:
    """Return what the machine refused (room, a right, a place for a file) where that is behind an error, else None."""
    seen: BaseException | None = error
    while seen is not None:
        # Behind another error only want of room: what else was caught there was, perhaps, dealt with.
        counted = REFUSALS if seen is error else NO_ROOM
        if isinstance(seen, OSError) and seen.errno in counted:
            return f"{seen.filename}: {seen.strerror}" if seen.filename else seen.strerror
        for full in map(os.strerror, NO_ROOM):  # libraries that are not written in Python have errors of their own
            if full in str(seen):
                return f"{full}: {one_line(seen)}"
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return None


def printable(text: str) -> str:
    """Return text whose control characters are spelt out: what strangers wrote must not steer a terminal."""
    return STEERING.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(error: BaseException) -> str:
    """Return the first line of a library's error, with the next if that says why, or its kind where it says nothing."""
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):  # of each file that was to be copied
        (_, place, cause), *others = error.args[0]
        return f"{place}: {cause}" + (f" (and of {len(others)} more files)" if others else "")
    if OF_DIGITS in str(error):
        return "a number of thousands of digits"
    first, *rest = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {rest[0].strip()}" if rest and first.endswith(":") else first
