"""Measure time and memory of each stage on many rows, at two sizes: time may grow with the rows, memory should not.

usage: python3 tools/benchmarks/scale.py TOKENIZER_DIR --work DIR [--rows 65000 650000] [--classes 5]

Writes texts of random words from the tokenizer's vocabulary, as long as Yelp's reviews (log-normal, about 129 tokens on
average). There is one test text for 13 train texts. Then `distill teacher` and `distill student` train for one epoch.
The model has one tiny layer, so the figures show everything else: reading, tokenizing, keeping the teacher's logits,
sampling, batching and evaluating. Peak memory is the resident set of the process, with mapped files. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizerBase

from distill.machine.devices import describe_hardware
from distill.machine.provenance import versions
from distill.storage.files import read_json

CHUNK = 10_000
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
PARTS = ("data", "tokenising", "teacher_logits", "training", "calibration", "test", "whole")


def main() -> None:
    """Measure each size; print the figures and their ratios."""
    parser = argparse.ArgumentParser(description="Measure time and memory of each stage on many rows.")
    parser.add_argument("tokenizer")
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[65_000, 650_000])
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--batch", type=int, default=256)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    sizes = []
    for rows in arguments.rows:
        work = arguments.work / str(rows)
        recipe = prepare(work, tokenizer, rows, arguments)
        found: dict[str, Any] = {"rows": rows, "parquet_bytes": (work / "train.parquet").stat().st_size}
        found["teacher"] = measure(work, "teacher", str(recipe))
        found["student"] = measure(work, "student", str(recipe), "--teacher", str(work / "teacher"), "--force")
        found["cache_bytes"] = bytes_in(work / "huggingface")
        found["teacher_logits_bytes"] = bytes_in(work / "teacher" / "teacher_logits")
        sizes.append(found)
        print(
            f"{rows:,} rows: parquet, cache and teacher logits of {found['parquet_bytes'] / 1e6:.0f} MB, "
            f"{found['cache_bytes'] / 1e6:.0f} MB and {found['teacher_logits_bytes'] / 1e6:.1f} MB"
        )
        for stage in ("teacher", "student"):
            parts = ", ".join(f"{part} {found[stage][part]:.1f} s" for part in PARTS if part in found[stage])
            print(f"{rows:,} rows, {stage}: {parts}; {found[stage]['peak_memory_bytes'] / 1e9:.2f} GB")
    ratios = {
        stage: {part: sizes[-1][stage][part] / sizes[0][stage][part] for part in sizes[0][stage]}
        for stage in ("teacher", "student")
    }
    print(f"rows: {arguments.rows[-1] / arguments.rows[0]:.1f} times as many; ratios of the figures: {ratios}")
    print(json.dumps({"sizes": sizes, "ratios": ratios, "hardware": describe_hardware(), "versions": versions()}))


def prepare(work: Path, tokenizer: PreTrainedTokenizerBase, rows: int, arguments: argparse.Namespace) -> Path:
    """Write the texts, the tiny model and the recipe; return the recipe's path."""
    (work / "model").mkdir(parents=True, exist_ok=True)
    words = np.array([word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha()])
    write_texts(work / "train.parquet", words, rows, arguments.classes, seed=0)
    write_texts(work / "test.parquet", words, rows // 13, arguments.classes, seed=1)
    BertConfig(vocab_size=len(tokenizer), architectures=["BertForMaskedLM"], **TINY).save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")
    training = {
        "num_train_epochs": 1, "per_device_train_batch_size": arguments.batch, "per_device_eval_batch_size": 256,
        "save_strategy": "no", "eval_strategy": "no",
    }  # fmt: skip
    recipe = {
        "data": {
            "files": {split: str((work / f"{split}.parquet").absolute()) for split in ("train", "test")},
            "label_names": [f"{stars} stars" for stars in range(1, arguments.classes + 1)],
            "validation_fraction": 0.02,
        },
        "teacher": {"model": str((work / "model").absolute()), "pretrained": False, "training": training},
        "student": {"layers": 1, "training": training},
    }
    path = work / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=2))  # JSON is YAML
    return path


def write_texts(path: Path, words: np.ndarray, rows: int, classes: int, *, seed: int) -> None:
    """Write `rows` texts and labels in chunks, so that this script needs little memory."""
    rng = np.random.default_rng(seed)
    schema = pa.schema({"text": pa.string(), "label": pa.int64()})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, CHUNK):
            count = min(CHUNK, rows - start)
            lengths = np.clip(rng.lognormal(np.log(95), 0.8, count), 5, 900).astype(int)
            drawn = words[rng.integers(0, len(words), lengths.sum())]
            texts = [" ".join(part) for part in np.split(drawn, lengths.cumsum()[:-1])]
            labels = rng.integers(0, classes, count)
            writer.write_table(pa.table({"text": texts, "label": labels}, schema=schema))


def bytes_in(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(work: Path, stage: str, *arguments: str) -> dict[str, float]:
    """Run a stage; return the seconds of each part and of the whole command, and its peak memory in bytes."""
    command = [sys.executable, "-m", "distill", stage, *arguments, "--output", str(work / stage), "--overwrite"]
    environment = os.environ | {"HF_HOME": str(work / "huggingface"), "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=sys.stderr, env=environment) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    whole = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {process.returncode}")
    training = read_json(work / stage / "metrics.json")["training"]
    found = {part: training[f"{part}_seconds"] for part in PARTS if f"{part}_seconds" in training}
    return found | {"training": training["seconds"], "whole": whole, "peak_memory_bytes": usage.ru_maxrss * 1024}


if __name__ == "__main__":
    main()
