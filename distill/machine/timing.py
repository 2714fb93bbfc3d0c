"""Latencies measured in turn, so that a drifting machine favors no candidate, and a clock for the parts of a job."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from statistics import median
from typing import NamedTuple, TypeVar

import numpy as np

Key = TypeVar("Key", bound=Hashable)

WARMUP_CALLS = 2
BLOCK_CALLS = 5
# Without a pause, a runtime's threads still spin after its call and slow the next runtime down: an int8 graph that
# takes 13 ms alone takes 30-43 ms in turn with another runtime.
PAUSE_SECONDS = 0.1
SCATTERED = 2.0  # highest over lowest ratio of the blocks; on a quiet machine it is below 1.5


class Speedup(NamedTuple):
    """How many times as fast one call is as another: the median, lowest and highest ratio over `blocks` blocks."""

    median: float
    low: float
    high: float
    blocks: int

    @property
    def is_scattered(self) -> bool:
        """Whether the blocks differ too much for a single figure."""
        return self.high >= SCATTERED * self.low


class Clock:
    """The seconds that the named parts of a job took; if a part comes several times, they add up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time the block as `part`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    def as_figures(self) -> dict[str, float]:
        """Return the seconds of each part, under the name PART_seconds."""
        return {f"{part}_seconds": seconds for part, seconds in self.seconds.items()}


def time_in_turn(
    calls: Mapping[Key, Callable[[], object]],
    rounds: int,
    *,
    synchronize: Callable[[], None] = lambda: None,
    pause_seconds: float = PAUSE_SECONDS,
    progress: Callable[[int], None] = lambda timed: None,
) -> dict[Key, list[float]]:
    """Return at least `rounds` latencies in milliseconds for each call, without warm-up calls.

    The calls take turns in blocks (A B C A B C ...). A block is a pause, two warm-up calls and five timed calls.
    `synchronize` waits for the end of every call, because a GPU returns before it is done. `progress` is called with
    the number of calls timed.
    """
    latencies: dict[Key, list[float]] = {key: [] for key in calls}
    for _ in range(-(-rounds // BLOCK_CALLS)):
        for key, call in calls.items():
            time.sleep(pause_seconds)
            for _ in range(WARMUP_CALLS):
                call()
            synchronize()
            for _ in range(BLOCK_CALLS):
                start = time.perf_counter()
                call()
                synchronize()
                latencies[key].append((time.perf_counter() - start) * 1e3)
            progress(BLOCK_CALLS)
    return latencies


def speedup(slower_ms: Sequence[float], faster_ms: Sequence[float]) -> Speedup:
    """Return how many times as fast the second call is, from the latencies that `time_in_turn` returned for both.

    Each pair of blocks gives one ratio: the median of the first call's block over the median of the second's, timed
    right after it. The median of a block tolerates two disturbed calls of five. Both blocks of a pair see the same
    drift of the machine, and the median over the pairs tolerates pairs that other work disturbed. Raises `ValueError`
    if one call was timed in more blocks than the other.
    """
    ratios = [slower / faster for slower, faster in zip(_blocks(slower_ms), _blocks(faster_ms), strict=True)]
    return Speedup(median(ratios), min(ratios), max(ratios), len(ratios))


def _blocks(latencies_ms: Sequence[float]) -> list[float]:
    """Return the median of each block, in order."""
    return [median(latencies_ms[start : start + BLOCK_CALLS]) for start in range(0, len(latencies_ms), BLOCK_CALLS)]


def summarise(latencies_ms: list[float]) -> dict[str, float | list[float]]:
    """Return p50, p95 and p99 of latencies in milliseconds, and the raw values."""
    p50, p95, p99 = (round(float(value), 4) for value in np.percentile(latencies_ms, [50, 95, 99]))
    return {"p50": p50, "p95": p95, "p99": p99, "raw": [round(value, 4) for value in latencies_ms]}
