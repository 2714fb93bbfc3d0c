"""Compare int8 settings: agreement with fp32, size and latency, on unlabeled texts.

usage: python3 tools/benchmarks/int8_settings.py MODEL_DIR TEXTS.parquet [--texts 1500] [--max-tokens 128] [--rounds 15]

Latencies are measured in turn at 1x128 and 8x128. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from distill.data.encoding import Truncation
from distill.export.formats import Source
from distill.export.int8 import Int8Settings, quantise
from distill.export.onnx_graph import quiet
from distill.export.outliers import RANGE_TEXTS
from distill.inference.classifier import Classifier, load
from distill.inference.sessions import OnnxSession
from distill.inference.torch_session import TorchSession
from distill.machine.provenance import versions
from distill.machine.timing import time_in_turn
from distill.measuring.benchmark import call_at

SETTINGS = {
    "default": Int8Settings(),
    "outliers not isolated": Int8Settings(outliers=False),
    "unsigned": Int8Settings(signed=False),
    "7 bits": Int8Settings(reduce_range=True),
    "one scale per tensor": Int8Settings(per_channel=False),
    "embeddings fp32": Int8Settings(embeddings=False),
    "head fp32": Int8Settings(fp32_products=("head",)),
    "feed-forward outputs fp32": Int8Settings(fp32_products=("feed_forward",)),
    "feed-forward outputs, head and embeddings fp32": Int8Settings(
        fp32_products=("feed_forward", "head"), embeddings=False
    ),
}


def main() -> None:
    """Quantize with each of the settings and print the differences from fp32."""
    parser = argparse.ArgumentParser(description="Compare int8 settings.")
    parser.add_argument("model")
    parser.add_argument("texts_file")
    parser.add_argument("--texts", type=int, default=1_500)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    dataset = Dataset.from_parquet(arguments.texts_file)
    calibration = dataset.select(range(RANGE_TEXTS))["text"]
    texts = dataset.select(range(RANGE_TEXTS, RANGE_TEXTS + arguments.texts))["text"]
    source, truncation = load(arguments.model, "cpu"), Truncation(arguments.max_tokens)
    assert isinstance(source.session, TorchSession)
    with tempfile.TemporaryDirectory() as work:
        made_from = Source(source.session.model, source.tokenizer, calibration, truncation, Path(work))
        files = {"fp32": made_from.graph}
        for name, settings in SETTINGS.items():
            files[name] = Path(work) / f"{len(files)}.onnx"
            with quiet():
                quantise(made_from.graph, files[name], settings, made_from.largest)
        sizes = {name: path.stat().st_size for name, path in files.items()}
        sessions = {name: OnnxSession(path, "cpu") for name, path in files.items()}
        logits = {
            name: Classifier(session, source.tokenizer, source.label_names, truncation).logits(texts)
            for name, session in sessions.items()
        }
    vocabulary = len(source.tokenizer)
    latencies = {
        shape: time_in_turn(
            {name: call_at(session, shape, vocabulary=vocabulary) for name, session in sessions.items()},
            arguments.rounds,
        )
        for shape in ("1x128", "8x128")
    }
    rows: dict[str, Any] = {}
    for name, found in logits.items():
        rows[name] = {
            "settings": asdict(SETTINGS[name]) if name in SETTINGS else None,
            "agreement": float((found.argmax(1) == logits["fp32"].argmax(1)).mean()),
            "mean_logit_diff": float(np.abs(found - logits["fp32"]).mean()),
            "size_bytes": sizes[name],
            "latency_p50_ms": {shape: statistics.median(times[name]) for shape, times in latencies.items()},
        }
        shown = ", ".join(f"{ms:.1f} ms at {shape}" for shape, ms in rows[name]["latency_p50_ms"].items())
        print(
            f"{name:46} agreement {rows[name]['agreement']:.4f}, mean difference {rows[name]['mean_logit_diff']:.4f}, "
            f"{sizes[name] / 1e6:.1f} MB, {shown}"
        )
    print(json.dumps({"rows": rows, "raw_ms": latencies, "arguments": vars(arguments), "versions": versions()}))


if __name__ == "__main__":
    main()
