"""Latencies measured in turn, so that a drifting machine favours nobody; a clock for the parts of a job."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import TypeVar

import numpy as np

Key = TypeVar("Key", bound=Hashable)

WARMUP_CALLS = 2
BLOCK_CALLS = 5
# Runtimes' threads go on spinning after a call and slow the next runtime down: an int8 graph that takes 13 ms alone
# reads 30-43 ms in strict turn with another runtime.
PAUSE_SECONDS = 0.1


class Clock:
    """The seconds that named parts of a job took, added up where a part comes more than once."""

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
        """Return PART_seconds for each part."""
        return {f"{part}_seconds": seconds for part, seconds in self.seconds.items()}


def time_in_turn(
    calls: Mapping[Key, Callable[[], object]],
    rounds: int,
    *,
    synchronize: Callable[[], None] = lambda: None,
    pause_seconds: float = PAUSE_SECONDS,
    progress: Callable[[int], None] = lambda timed: None,
) -> dict[Key, list[float]]:
    """Return at least `rounds` latencies in milliseconds for each call, first calls and warm-up left out.

    Blocks A B C A B C ...: each is a pause, two calls that do not count, then five that do. `synchronize` ends every
    call (a GPU returns before it is done); `progress` is told how many calls were timed.
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


def summarise(latencies_ms: list[float]) -> dict[str, float | list[float]]:
    """Return p50, p95 and p99 of latencies in milliseconds, and the raw values."""
    p50, p95, p99 = np.percentile(latencies_ms, [50, 95, 99])
    raw = [round(value, 4) for value in latencies_ms]
    return {"p50": round(float(p50), 4), "p95": round(float(p95), 4), "p99": round(float(p99), 4), "raw": raw}
