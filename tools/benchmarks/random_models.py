"""Make classifiers in the shapes of base-size encoders with random weights, to measure speed offline.

usage: python3 tools/benchmarks/random_models.py TOKENIZER_DIR OUT [--toy]

Writes OUT/bert-base, OUT/distilbert-base and OUT/modernbert-base, with the tokenizer of TOKENIZER_DIR; they load like
any other model. --toy makes them tiny, for rehearsals, and adds OUT/encoder in place of a pretrained encoder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    DistilBertConfig,
    ModernBertConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
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
        for name, config in configurations(tokenizer, toy=arguments.toy).items():
            set_seed(0)
            kind = BertModel if name == "encoder" else AutoModelForSequenceClassification.from_config
            model: PreTrainedModel = kind(config)
            model.save_pretrained(partial / name)
            tokenizer.save_pretrained(partial / name)
            print(arguments.out / name)


def configurations(tokenizer: PreTrainedTokenizerBase, *, toy: bool) -> dict[str, PretrainedConfig]:
    """Return the configurations by name; if not `toy`, transformers' defaults, which are the base sizes."""
    shared = {"vocab_size": len(tokenizer), "max_position_embeddings": TOKENS}
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    ids = {"bos_token_id": first, "cls_token_id": first, "eos_token_id": last, "sep_token_id": last}
    modern = shared | ids | {"pad_token_id": tokenizer.pad_token_id}
    if not toy:
        return {
            "bert-base": BertConfig(**shared),
            "distilbert-base": DistilBertConfig(**shared),
            "modernbert-base": ModernBertConfig(**modern),
        }
    bert = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "initializer_range": 0.1}
    return {
        "bert-base": BertConfig(**shared, **bert, num_hidden_layers=4),
        "distilbert-base": DistilBertConfig(**shared, dim=32, n_layers=2, n_heads=4, hidden_dim=64),
        "modernbert-base": ModernBertConfig(**modern, **bert, num_hidden_layers=4, local_attention=8),
        "encoder": BertConfig(**shared, **bert, num_hidden_layers=4),
    }


if __name__ == "__main__":
    main()
