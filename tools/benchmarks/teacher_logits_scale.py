"""Measure kept teacher logits on disk and in memory, at two sizes; more rows should not take more memory.

usage: python3 tools/benchmarks/teacher_logits_scale.py MODEL_DIR [--rows 65000 650000] [--classes 5]

The teacher answers at once with random logits, so the figures show only the keeping: writing, checking and reading
every row back in batches. Each size runs in its own process. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from datasets import Dataset

from distill.machine.provenance import versions


def main() -> None:
    """Measure each size in its own process."""
    parser = argparse.ArgumentParser(description="Measure kept teacher logits on disk and in memory.")
    parser.add_argument("model", help="folder of a classifier with --classes classes")
    parser.add_argument("--rows", type=int, nargs="+", default=[65_000, 650_000])
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.model, arguments.rows[0], arguments.classes)))
        return
    sizes = []
    for rows in arguments.rows:
        command = [sys.executable, __file__, arguments.model, "--child", "--rows", str(rows)]
        command += ["--classes", str(arguments.classes)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        sizes.append(json.loads(done.stdout.splitlines()[-1]))
        shown = "{rows:,} rows: {bytes_on_disk:,} bytes on disk, {seconds:.1f} s, {growth:,} bytes of memory"
        print(shown.format(**sizes[-1]))
    print(json.dumps({"sizes": sizes, "classes": arguments.classes, "versions": versions()}))


def measure(model: str, rows: int, classes: int) -> dict[str, float]:
    """Keep and read the logits of `rows` texts; return bytes on disk, seconds, peak memory and its growth in bytes."""
    from distill.distillation.teacher_logits import LogitCache, identify_teacher, load_or_compute
    from distill.models.config import class_names
    from distill.models.loading import load_config

    class Instant:
        def logits(self, texts: list[str], progress: object) -> np.ndarray:
            return np.random.default_rng(len(texts)).normal(size=(len(texts), classes)).astype(np.float32)

    with tempfile.TemporaryDirectory() as work:
        texts = ({"example_id": f"train/{row}", "text": f"review {row} " + "word " * 130} for row in range(rows))
        path = Path(work) / "texts.jsonl"
        with open(path, "w") as file:
            file.writelines(json.dumps(text) + "\n" for text in texts)
        table = Dataset.from_json(str(path), cache_dir=work)
        teacher = identify_teacher(model, class_names(load_config(model), model))
        load_or_compute(LogitCache(teacher, table.select(range(5_000)), Instant, cache=Path(work) / "warm"))
        start, peak = time.perf_counter(), Peak()
        with peak:
            kept = load_or_compute(LogitCache(teacher, table, Instant, cache=Path(work) / "cache"))
            total = sum(len(batch["teacher_logits"]) for batch in kept.iter(batch_size=1_000))
        seconds = time.perf_counter() - start
        assert total == rows
        size = sum(file.stat().st_size for file in (Path(work) / "cache").rglob("*") if file.is_file())
        return {"rows": rows, "bytes_on_disk": size, "seconds": seconds, "peak": peak.most, "growth": peak.growth}


class Peak:
    """The peak anonymous memory in bytes while the block runs (Linux's RssAnon, without mapped files)."""

    def __enter__(self) -> None:
        self.before = self.most = anonymous_bytes()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        self.growth = self.most - self.before

    def _watch(self) -> None:
        while not self.done.wait(0.02):
            self.most = max(self.most, anonymous_bytes())


def anonymous_bytes() -> int:
    """Return the anonymous memory of this process in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
