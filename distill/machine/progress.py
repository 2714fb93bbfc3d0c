"""A progress line on stderr for long work: the share done, the speed and the time left."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from distill.machine.ranks import rank


def progress_line(title: str, total: int | None, unit: str, *, initial: int = 0, keep: bool = False) -> tqdm[Any]:
    """Return a progress line to use in a `with` block; `keep` leaves it on the screen when it is done.

    Only rank 0 shows one.
    """
    interval = 0.2 if sys.stderr.isatty() else 10  # a log file needs no animation
    return tqdm(
        total=total, desc=title, unit=unit, initial=initial, mininterval=interval, leave=keep, disable=rank() > 0
    )
