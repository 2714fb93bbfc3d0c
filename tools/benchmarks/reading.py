"""How long and in how much memory a table is read for training: distill's reader against that of datasets.

usage: python tools/benchmarks/reading.py FILE [--text-column text] [--label-column label] [--rounds 3]

Each reading is a process of its own with an empty cache, in turn. Prints a table and then one JSON line: seconds
(median and range) and peak memory of each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tabulate import tabulate

from distill.machine.devices import describe_hardware
from distill.machine.provenance import versions

READERS = {
    "distill": """
from distill.recipe.schema import Data, Files
from distill.data.sources import load_tables
files = Files(train=path, test=path)  # read once: the second time it is in the cache
table = load_tables(Data(files=files, text_column=text, label_column=label))["train"].rows
""",
    "datasets": """
from datasets import load_dataset
kind = {"tsv": "csv", "jsonl": "json"}.get(path.rpartition(".")[2], path.rpartition(".")[2])
options = {"keep_default_na": False, **({"sep": "\\t"} if path.endswith(".tsv") else {})} if kind == "csv" else {}
table = load_dataset(kind, data_files={"train": path}, split="train", **options).select_columns([text, label])
""",
}
AROUND = """
import json, resource, sys, time
path, text, label = sys.argv[1:]
import datasets, distill.data.sources
datasets.disable_progress_bars()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
{reader}
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({{"seconds": seconds, "rows": len(table), "peak_bytes": peak * 1024, "before_bytes": before * 1024}}))
"""


def main() -> None:
    """Read, compare, print."""
    parser = argparse.ArgumentParser(description="Reading a table: distill against datasets.")
    parser.add_argument("file")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in READERS}
    for _ in range(arguments.rounds):
        for name, reader in READERS.items():
            with tempfile.TemporaryDirectory() as cache:
                done = subprocess.run(
                    [sys.executable, "-c", AROUND.format(reader=reader), arguments.file, arguments.text_column,
                     arguments.label_column],
                    env={**os.environ, "HF_HOME": cache, "HF_HUB_OFFLINE": "1"}, check=True,
                    capture_output=True, text=True,
                )  # fmt: skip
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    rows = {
        name: {
            "rows": runs[0]["rows"],
            "seconds": statistics.median(run["seconds"] for run in runs),
            "seconds_range": [min(run["seconds"] for run in runs), max(run["seconds"] for run in runs)],
            "peak_mb": max(run["peak_bytes"] for run in runs) / 1e6,
            "imports_mb": runs[0]["before_bytes"] / 1e6,
        }
        for name, runs in found.items()
    }
    print(tabulate([{"reader": name, **row} for name, row in rows.items()], headers="keys", floatfmt=".2f"))
    print(json.dumps({"file_bytes": Path(arguments.file).stat().st_size, **rows, "hardware": describe_hardware(),
                      "versions": versions()}))  # fmt: skip


if __name__ == "__main__":
    main()
