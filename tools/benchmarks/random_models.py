"""Make classifiers in the shape of BERT-base and DistilBERT-base with random weights, to measure speed offline.

usage: python3 tools/benchmarks/random_models.py TOKENIZER_DIR OUT [--toy]

Writes OUT/bert-base and OUT/distilbert-base, with the tokenizer of TOKENIZER_DIR; they load like any other model. --toy
makes them tiny, for rehearsals, and adds OUT/encoder in place of a pretrained encoder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    DistilBertConfig,
    PretrainedConfig,
    PreTrainedModel,
    set_seed,
)

from distill.models.loading import load_tokenizer
from distill.storage.files import atomic_path

TOKENS = 512


def main() -> None:
    """Make the models and save them."""
    parser = argparse.ArgumentParser(description="Make classifiers with random weights.")
    parser.add_argument("tokenizer")
    parser.add_argument("out", type=Path)
    parser.add_argument("--toy", action="store_true")
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.tokenizer)
    tokenizer.model_max_length = TOKENS
    with atomic_path(arguments.out) as partial:
        for name, config in configurations(len(tokenizer), toy=arguments.toy).items():
            set_seed(0)
            kind = BertModel if name == "encoder" else AutoModelForSequenceClassification.from_config
            model: PreTrainedModel = kind(config)
            model.save_pretrained(partial / name)
            tokenizer.save_pretrained(partial / name)
            print(arguments.out / name)


def configurations(vocabulary: int, *, toy: bool) -> dict[str, PretrainedConfig]:
    """Return the configurations by name; if not `toy`, transformers' defaults, which are the base sizes."""
    shared = {"vocab_size": vocabulary, "max_position_embeddings": TOKENS}
    if not toy:
        return {"bert-base": BertConfig(**shared), "distilbert-base": DistilBertConfig(**shared)}
    bert = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "initializer_range": 0.1}
    return {
        "bert-base": BertConfig(**shared, **bert, num_hidden_layers=4),
        "distilbert-base": DistilBertConfig(**shared, dim=32, n_layers=2, n_heads=4, hidden_dim=64),
        "encoder": BertConfig(**shared, **bert, num_hidden_layers=4),
    }


if __name__ == "__main__":
    main()
