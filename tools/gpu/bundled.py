"""Classify texts with a bundle's fp16 graph as any program could, and compare the labels with those of distill.

usage: python3 tools/gpu/bundled.py BUNDLE_DIR EXPORT_DIR TEXTS.parquet [--texts N] [--device cuda]

It reads the bundle with transformers' tokenizer and ONNX Runtime alone, one text at a time. The last line of stdout is
one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet as parquet
from transformers import AutoTokenizer

import distill
from distill.inference.runtimes import onnx_providers


def main() -> None:
    """Classify the texts both ways and print how many labels agree."""
    parser = argparse.ArgumentParser(description="Labels of a bundle in ONNX Runtime, and of distill.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("export")
    parser.add_argument("texts_file")
    parser.add_argument("--texts", type=int)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    arguments = parser.parse_args()
    texts = parquet.read_table(arguments.texts_file, columns=["text"])["text"].to_pylist()[: arguments.texts]
    tokenizer = AutoTokenizer.from_pretrained(arguments.bundle)
    graph = str(arguments.bundle / "onnx" / "model_fp16.onnx")
    session = onnxruntime.InferenceSession(graph, providers=onnx_providers(arguments.device))
    start = time.perf_counter()
    answers = []
    for text in texts:
        tokens = tokenizer(text, truncation=True, return_tensors="np")
        (logits,) = session.run(["logits"], {item.name: tokens[item.name] for item in session.get_inputs()})
        answers.append(int(np.argmax(logits)))
    seconds = time.perf_counter() - start
    expected = distill.load(arguments.export, arguments.device).logits(texts).argmax(axis=1)
    agreed = float((np.array(answers) == expected).mean())
    print(f"{agreed:.4f} of {len(texts)} labels agree; {len(texts) / seconds:.1f} texts/s, one at a time")
    found = {"agreement": agreed, "texts": len(texts), "texts_per_second_one_by_one": len(texts) / seconds}
    print(json.dumps(found | {"provider": session.get_providers()[0]}))


if __name__ == "__main__":
    main()
