"""stdout and stderr as a command has them: nothing in them steers a terminal, and what is not written is told."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from distill.errors import STEERING

# What the lines of progress move the cursor by: to the beginning of the line, and up if there are several.
PROGRESS = re.compile(r"(\r|\n+|(\x1b\[A)+)")


class NotWritten(Exception):
    """What was to be printed was not: `errno` of the reason, and the reason in words."""

    def __init__(self, error: OSError | ValueError):
        self.errno = getattr(error, "errno", None)
        super().__init__(getattr(error, "strerror", None) or str(error))


class Guarded:
    """A text stream in which control characters are spelt as JSON does (\\u001b), so that JSON stays what it was.

    Line ends and tabs stay, and what moves a line of progress if `is_log`. Of a log, too, nobody minds if its reader
    has gone; other streams raise `NotWritten`.
    """

    def __init__(self, stream: TextIO, *, is_log: bool):
        self._stream, self._is_log = stream, is_log
        self._failed: NotWritten | None = None  # for good: those between may have thought nothing of it

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        moves = PROGRESS.match(text) if self._is_log else None
        start = moves.end() if moves else 0
        self._try(self._stream.write, text[:start] + STEERING.sub(_spelt, text[start:]))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self._failed:
            raise self._failed
        self._try(self._stream.flush)

    def _try(self, act: Any, *arguments: str) -> None:
        try:
            act(*arguments)
        except (OSError, ValueError) as error:  # the second: it is closed
            self._stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the rest of the process
            if not self._is_log:
                self._failed = NotWritten(error)
                raise self._failed from None


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Within the block, print to guarded streams; at its end what was printed has been written, or `NotWritten`."""
    before = sys.stdout, sys.stderr
    if sys.stderr is None:  # closed by who started this
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = Guarded(sys.stderr, is_log=True)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        if sys.stdout is None:
            raise NotWritten(OSError(None, "it is closed"))
        sys.stdout = Guarded(sys.stdout, is_log=False)  # pyright: ignore[reportAttributeAccessIssue]
        yield
        sys.stdout.flush()
    finally:
        sys.stdout, sys.stderr = before


def give_up_stdout() -> None:
    """Let what is still held for stdout go nowhere: Python would complain of it as it ends."""
    if sys.stdout is None:
        return
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _spelt(found: re.Match[str]) -> str:
    return found[0] if found[0] in "\n\t" else f"\\u{ord(found[0]):04x}"
