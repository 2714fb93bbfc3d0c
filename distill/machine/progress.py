"""One line on stderr for long work: how far, how fast, how long still."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from distill.machine.ranks import rank


def progress_line(title: str, total: int | None, unit: str, *, initial: int = 0, keep: bool = False) -> tqdm[Any]:
    """Return an open progress line, to be used in a `with` block; `keep` leaves it standing when it is done.

    Of several ranks the first alone shows one.
    """
    interval = 0.2 if sys.stderr.isatty() else 10  # a log file needs no animation
    return tqdm(
        total=total, desc=title, unit=unit, initial=initial, mininterval=interval, leave=keep, disable=rank() > 0
    )
