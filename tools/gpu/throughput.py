"""Texts per second of a classifier in torch, with padding and without, from texts to logits, tokenizing included.

usage: python3 tools/gpu/throughput.py MODEL_DIR TEXTS.parquet [--texts N] [--rounds 3] [--device cuda]

The ways take turns. Each packs the texts by length into batches of equal token counts, as `distill.load` does. The last
line of stdout is one JSON object, with each way's rates and how many of its labels are those of torch in fp32.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable

import numpy as np
import pyarrow.parquet as parquet
import torch
from unpadded import UnpaddedSession

from distill.inference.classifier import Classifier, identify
from distill.inference.sessions import Session
from distill.inference.torch_session import TorchSession, load_torch
from distill.measuring.benchmark import timed_logits
from distill.measuring.metrics import agreement
from distill.models.config import class_names

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
WAYS: dict[str, Callable[..., Session]] = {"": TorchSession, " unpadded": UnpaddedSession}


def main() -> None:
    """Time all ways in turn and print their rates."""
    parser = argparse.ArgumentParser(description="Texts per second in torch, with padding and without.")
    parser.add_argument("model")
    parser.add_argument("texts_file")
    parser.add_argument("--texts", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    arguments = parser.parse_args()
    texts = parquet.read_table(arguments.texts_file, columns=["text"])["text"].to_pylist()[: arguments.texts]
    reference, _ = timed_logits(classifier_of(arguments.model, TorchSession, torch.float32, arguments.device), texts)
    classifiers = {
        f"torch-{name}{way}": classifier_of(arguments.model, session, dtype, arguments.device)
        for name, dtype in DTYPES.items()
        for way, session in WAYS.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in classifiers}
    logits: dict[str, np.ndarray] = {}
    for _ in range(arguments.rounds):
        for name, classifier in classifiers.items():
            logits[name], rate = timed_logits(classifier, texts)
            rates[name].append(rate)
    agreed = {name: agreement(found, reference) for name, found in logits.items()}
    for name, found in rates.items():
        print(f"{name:22} {statistics.median(found):9.1f} texts/s, {agreed[name]:.4f} of its labels as in fp32")
    print(json.dumps({"rates": rates, "agreement": agreed, "arguments": vars(arguments)}))


def classifier_of(name: str, session: Callable[..., Session], dtype: torch.dtype, device: str) -> Classifier:
    """Return the classifier `name` in a session of this kind, its weights in `dtype`."""
    config, tokenizer, truncation = identify(name)
    model = load_torch(name, config, "float32").to(dtype)
    return Classifier(session(model, device), tokenizer, class_names(config, name), truncation)


if __name__ == "__main__":
    main()
