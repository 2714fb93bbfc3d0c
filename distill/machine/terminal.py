"""Safe stdout and stderr for commands: no control characters reach the terminal, and failed writes are reported."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from distill.errors import STEERING

# Progress lines move the cursor with these: back to the beginning of the line, and up if there are several lines.
PROGRESS = re.compile(r"(\r|\n+|(\x1b\[A)+)")


class NotWritten(Exception):
    """Output could not be written; holds the `errno` and the reason in words."""

    def __init__(self, error: OSError | ValueError):
        self.errno = getattr(error, "errno", None)
        super().__init__(getattr(error, "strerror", None) or str(error))


class Guarded:
    """A text stream that writes control characters as JSON escapes (\\u001b), so that JSON keeps its meaning.

    Line ends and tabs are written as they are. With `is_log`, so are the cursor moves of progress lines, and failed
    writes are ignored (the log's reader may have gone). Without it, they raise `NotWritten`.
    """

    def __init__(self, stream: TextIO, *, is_log: bool):
        self._stream, self._is_log = stream, is_log
        self._failed: NotWritten | None = None  # kept, because callers in between may have caught the exception

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
        except (OSError, ValueError) as error:  # ValueError if the stream is closed
            self._stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the rest of the process
            if not self._is_log:
                self._failed = NotWritten(error)
                raise self._failed from None


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Within the block, print to guarded streams; at its end, everything is written or `NotWritten` is raised."""
    before = sys.stdout, sys.stderr
    if sys.stderr is None:  # closed by the parent process
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
    """Discard what is still buffered for stdout; otherwise Python prints an error at exit."""
    if sys.stdout is None:
        return
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _spelt(found: re.Match[str]) -> str:
    return found[0] if found[0] in "\n\t" else f"\\u{ord(found[0]):04x}"
