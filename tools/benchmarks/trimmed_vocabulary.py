"""Measure what trimming a multilingual vocabulary to one language's texts saves, in bytes of int8, and what it costs.

usage: python3 tools/benchmarks/trimmed_vocabulary.py RECIPE WORK [--pieces 250000] [--layers 6] [--width 384]
           [--share 1.0]

The model has the shape of multilingual MiniLM (XLM-RoBERTa's architecture and number of pieces) and random weights. Its
tokenizer has the words and word parts of the recipe's training texts; all other pieces are invented words of other
scripts. The vocabulary is trimmed to the training texts. Both models are exported to onnx-int8, and the labels that
they give to the test texts are compared. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    set_seed,
)

import distill
from distill.data.encoding import Truncation, encode
from distill.data.splits import read_splits
from distill.export.formats import export_formats
from distill.export.proofs import Bounds
from distill.inference.classifier import Classifier, weights_bytes
from distill.inference.torch_session import TorchSession
from distill.machine.devices import describe_hardware
from distill.machine.provenance import versions
from distill.models.loading import classification_head
from distill.models.saving import save
from distill.models.vocabulary import trim_embeddings, trim_tokenizer, unknown_share
from distill.recipe.file import load_recipe

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
TOKENS = 256
LABELS = ("negative", "positive")
PROVED = 200  # texts


def main() -> None:
    """Export both models and print their sizes and how often they agree."""
    parser = argparse.ArgumentParser(description="Measure what trimming a multilingual vocabulary saves.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--pieces", type=int, default=250_000)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--share", type=float, default=1.0)
    arguments = parser.parse_args()
    splits = read_splits(load_recipe(arguments.recipe))
    texts, test = splits.train["text"][:], splits.test["text"][:]
    tokenizer = multilingual(texts, arguments.pieces)
    set_seed(1)
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=arguments.width, num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.width // 32, intermediate_size=4 * arguments.width, num_labels=2,
        max_position_embeddings=TOKENS + 2, type_vocab_size=1,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config).eval()
    known = texts[:PROVED]  # the trimmed model reads these as the whole one does
    tell_texts_apart(model, tokenizer, known)
    result: dict[str, object] = {"whole": measured(model, tokenizer, known, test, arguments.work / "whole")}
    ids = encode(tokenizer, texts, Truncation(TOKENS)).ids
    counts = np.bincount(np.concatenate([np.asarray(row) for row in ids]), minlength=len(tokenizer))
    trimmed, former = trim_tokenizer(tokenizer, counts, arguments.share)
    trim_embeddings(model, former)
    result["trimmed"] = measured(model, trimmed, known, test, arguments.work / "trimmed")
    agreed = {}
    for name, some in (("trained on", known), ("test", test)):
        answers = [distill.load(arguments.work / each / "onnx-int8").logits(some) for each in ("whole", "trimmed")]
        agreed[f"{name}, share of the first label"] = float((answers[0].argmax(axis=1) == 0).mean())
        agreed[name] = float((answers[0].argmax(axis=1) == answers[1].argmax(axis=1)).mean())
        agreed[f"{name}, largest difference of a logit"] = float(np.abs(answers[0] - answers[1]).max())
    print(json.dumps({**result, "agreement": agreed, "hardware": describe_hardware(), "versions": versions()}))


def tell_texts_apart(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> None:
    """Enlarge the weights and centre the answers: a new model gives every text the same label, whatever happens."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
        truncation = Truncation(TOKENS)
        logits = Classifier(TorchSession(model, "cpu"), tokenizer, LABELS, truncation).logits(texts)
        classification_head(model).bias -= torch.from_numpy(np.median(logits, axis=0))


def measured(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, known: list[str], test: list[str], folder: Path
) -> dict[str, float]:
    """Export the model to onnx-int8, proved on `known`; return sizes and the share of unknown tokens in `test`."""
    folder.mkdir(parents=True, exist_ok=True)
    save(model, tokenizer, folder)
    proof = next(
        export_formats(
            model, tokenizer, LABELS, known, np.zeros(PROVED, int), folder, ["onnx-int8"],
            truncation=Truncation(TOKENS), bounds=Bounds(1.0, 0.0), device="cpu", card=lambda proof: "",
        )
    )  # fmt: skip
    assert proof.passed, proof.reason
    return {
        "tokens": len(tokenizer),
        "int8_bytes": proof.size_bytes,
        "fp32_bytes": weights_bytes(folder),
        "unknown": unknown_share(tokenizer, encode(tokenizer, test, Truncation(TOKENS)).ids),
    }


def multilingual(texts: list[str], pieces: int) -> PreTrainedTokenizerBase:
    """Return a tokenizer as XLM-RoBERTa's: unigram pieces, of which those of `texts` are a part."""
    words = Counter(word for text in texts for word in text.split())
    total, rng = sum(words.values()), random.Random(1)
    scores = {f"\u2581{word}": float(np.log(count / total)) for word, count in words.most_common(pieces // 10)}
    for word, count in words.most_common(pieces // 10):
        for size in (1, 2, 3):
            for start in range(len(word) - size + 1):
                scores.setdefault(word[start : start + size], float(np.log(count / total)) - 4 * (4 - size))
    scores.setdefault("\u2581", -8.0)
    while len(scores) < pieces - len(SPECIAL):
        first = rng.choice((0x0430, 0x3042, 0x0E01, 0x0905, 0x05D0, 0x4E00))
        scores.setdefault("".join(chr(first + rng.randrange(24)) for _ in range(rng.randint(2, 7))), -12.0)
    vocab = [*((name, 0.0) for name in SPECIAL), *scores.items()][:pieces]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=TOKENS, bos_token="<s>", eos_token="</s>", cls_token="<s>",
        sep_token="</s>", pad_token="<pad>", unk_token="<unk>",
    )  # fmt: skip


if __name__ == "__main__":
    main()
