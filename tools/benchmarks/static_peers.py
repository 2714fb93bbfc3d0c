"""Train and time a classifier of model2vec or fastText, the peers of n-gram students; it does not need distill.

usage: python static_peers.py model2vec TRAIN.parquet TEST.parquet --encoder DIR [--rounds 5]
       python static_peers.py fasttext TRAIN.parquet TEST.parquet [--rounds 5]

`pip install "model2vec[distill,train]"` or `pip install fasttext-wheel`, in an environment of its own. The files have
columns text and label. model2vec distills the encoder into a static model and trains its own classifier on it, which
holds out its own validation texts. fastText lowercases, sets punctuation apart, uses word pairs, and trains for 5
epochs at a learning rate of 0.5. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

Answers = Callable[[Sequence[str]], Sequence[str]]


def main() -> None:
    """Train the peer, classify the test texts several times, and print accuracy, speed and size."""
    parser = argparse.ArgumentParser(description="Train and time a static peer of n-gram students.")
    parser.add_argument("peer", choices=["model2vec", "fasttext"])
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--encoder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    (texts, labels), (test_texts, test_labels) = _read(arguments.train), _read(arguments.test)
    with tempfile.TemporaryDirectory() as work:
        start = time.perf_counter()
        make = _model2vec if arguments.peer == "model2vec" else _fasttext
        classify, size = make(texts, labels, Path(work), arguments)
        seconds = time.perf_counter() - start
        classify(test_texts[:100])
        rates, answers = [], []
        for _ in range(arguments.rounds):
            time.sleep(0.5)
            start = time.perf_counter()
            answers = list(classify(test_texts))
            rates.append(len(test_texts) / (time.perf_counter() - start))
    right = sum(answer == label for answer, label in zip(answers, test_labels, strict=True))
    found = {
        "peer": arguments.peer,
        "accuracy": right / len(test_labels),
        "texts_per_second": statistics.median(rates),
        "rates": rates,
        "megabytes": size / 1e6,
        "training_seconds": seconds,
        "train_texts": len(texts),
    }
    print(json.dumps(found))


def _read(path: str) -> tuple[list[str], list[str]]:
    table = parquet.read_table(path, columns=["text", "label"])
    return table["text"].to_pylist(), list(map(str, table["label"].to_pylist()))


def _model2vec(texts: list[str], labels: list[str], work: Path, arguments: argparse.Namespace) -> tuple[Answers, int]:
    from model2vec.distill import distill  # pyright: ignore[reportMissingImports]
    from model2vec.train import StaticModelForClassification  # pyright: ignore[reportMissingImports]

    static = distill(model_name=arguments.encoder)
    model: Any = StaticModelForClassification.from_static_model(model=static)
    model.fit(texts, labels)
    pipeline = model.to_pipeline()
    pipeline.save_pretrained(str(work))
    size = sum(path.stat().st_size for path in work.rglob("*") if path.suffix in (".safetensors", ".skops"))
    return (lambda some: [str(one) for one in pipeline.predict(list(some))]), size


def _fasttext(texts: list[str], labels: list[str], work: Path, arguments: argparse.Namespace) -> tuple[Answers, int]:
    import fasttext  # pyright: ignore[reportMissingImports]

    lines = [f"__label__{label} {_words(text)}" for text, label in zip(texts, labels, strict=True)]
    random.Random(0).shuffle(lines)  # it learns line by line, and IMDb's come sorted by label
    (work / "train.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    model: Any = fasttext.train_supervised(
        input=str(work / "train.txt"), wordNgrams=2, epoch=5, lr=0.5, thread=arguments.threads, verbose=0
    )
    model.save_model(str(work / "model.bin"))

    def classify(some: Sequence[str]) -> list[str]:
        found, _ = model.predict([_words(text) for text in some])
        return [one[0].removeprefix("__label__") for one in found]

    return classify, (work / "model.bin").stat().st_size


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+|[^\w\s]", text.lower()))


if __name__ == "__main__":
    main()
