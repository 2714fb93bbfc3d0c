"""Measure texts per second of transformers' own pipeline, with tokenizing; a peer for predict_throughput.py.

usage: python3 tools/benchmarks/pipeline_throughput.py MODEL_DIR TEXTS.parquet [--texts N] [--batch 16]
           [--max-tokens 512] [--device cuda] [--dtype float16]

The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time

import pyarrow.parquet as parquet
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

WARMUP_TEXTS = 64


def main() -> None:
    """Warm up, classify the texts once, and print the rate."""
    parser = argparse.ArgumentParser(description="Measure texts per second of transformers' pipeline.")
    parser.add_argument("model")
    parser.add_argument("texts_file")
    parser.add_argument("--texts", type=int)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="float16")
    arguments = parser.parse_args()
    texts = parquet.read_table(arguments.texts_file, columns=["text"])["text"].to_pylist()[: arguments.texts]
    model = AutoModelForSequenceClassification.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype))
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device=arguments.device)
    settings = {"batch_size": arguments.batch, "truncation": True, "max_length": arguments.max_tokens}
    classify(texts[:WARMUP_TEXTS], **settings)
    start = time.perf_counter()
    labels = [row["label"] for row in classify(texts, **settings)]
    seconds = time.perf_counter() - start
    found = {"texts_per_second": len(labels) / seconds, "texts": len(labels)}
    print(json.dumps(found | {"device": str(model.device), "dtype": str(model.dtype), "batch": arguments.batch}))


if __name__ == "__main__":
    main()
