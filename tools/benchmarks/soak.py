"""Measure the memory of a process that classifies texts of mixed lengths for a long time, and whether it grows.

usage: python3 tools/benchmarks/soak.py MODEL_OR_EXPORT_DIR [--minutes 30] [--max-words 20000]

One classifier answers batches of texts with 1 to `--max-words` words (log-uniform, seeded). Resident memory is read
after each batch. It counts as flat if the median in the last tenth of the time is at most 2 % above the median in the
second tenth; the first tenth is the warm-up. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import time

import psutil

import distill
from distill.machine.devices import describe_hardware
from distill.machine.progress import progress_line
from distill.machine.provenance import versions

BATCH = 64
POINTS = 60  # in the printed curve, about
FLAT = 1.02
WORDS = ["the", "film", "was", "good", "bad", "dull", "great", "a", "plot", "and", "very", "not", "never", "ending"]


def main() -> None:
    """Classify until the time is over; print the memory."""
    parser = argparse.ArgumentParser(description="Measure whether a classifier's memory grows.")
    parser.add_argument("model")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--max-words", type=int, default=20_000)
    arguments = parser.parse_args()
    classifier = distill.load(arguments.model, "cpu")
    rng, process = random.Random(0), psutil.Process()
    curve: list[tuple[float, float]] = []  # seconds, resident megabytes
    texts = 0
    begun = time.monotonic()
    seconds = 60 * arguments.minutes
    with progress_line("soak", None, "text") as line:
        while (now := time.monotonic() - begun) < seconds:
            lengths = [round(math.exp(rng.uniform(0, math.log(arguments.max_words)))) for _ in range(BATCH)]
            classifier.probabilities([" ".join(rng.choices(WORDS, k=length)) for length in lengths])
            texts += BATCH
            line.update(BATCH)
            curve.append((now, process.memory_info().rss / 1e6))
    tenth = seconds / 10
    early = statistics.median(memory for at, memory in curve if tenth <= at < 2 * tenth)
    late = statistics.median(memory for at, memory in curve if at >= 9 * tenth)
    step = max(1, len(curve) // POINTS)
    result = {
        "minutes": arguments.minutes,
        "texts": texts,
        "format": classifier.session.format,
        "max_words": arguments.max_words,
        "early_mb": early,
        "late_mb": late,
        "is_flat": late <= FLAT * early,
        "curve": [[round(at), round(memory, 1)] for at, memory in curve[::step]],
        "hardware": describe_hardware(),
        "versions": versions(),
    }
    print(f"{texts} texts in {arguments.minutes:g} minutes: {early:.0f} MB early, {late:.0f} MB late", file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
