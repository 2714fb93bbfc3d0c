"""What the graph of an n-gram model needs: a table that suits int8, and a configuration that other runtimes know."""

from __future__ import annotations

import copy

import torch
from transformers import BertConfig, PreTrainedConfig

from distill.data.encoding import NO_LIMIT
from distill.models.config import NGRAMS
from distill.models.ngrams import NgramForSequenceClassification
from distill.models.thresholds import CONFIG_KEY as THRESHOLDS


def with_even_columns(model: NgramForSequenceClassification) -> NgramForSequenceClassification:
    """Return a copy that computes the same with a table whose columns all have the same largest magnitude.

    So one int8 scale suits them all. The factors go into the head, which reads a weighted sum of the rows.
    """
    model = copy.deepcopy(model)
    table = model.ngrams.embeddings.weight
    with torch.no_grad():
        largest = table.abs().amax(dim=0).clamp(min=torch.finfo(table.dtype).tiny)
        table /= largest
        model.classifier.weight *= largest
    return model


def interface(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration that goes with a graph of an n-gram model.

    Optimum and other runtimes refuse a folder whose architecture they do not know, though all that they read of it is
    the names of the classes (and distill their thresholds). So it names one that has the same inputs and output, in the
    smallest size.
    """
    sizes = {name: getattr(config, name) for name in ("vocab_size", "longest", "table", "width")}
    shared = {name: getattr(config, name) for name in ("id2label", "label2id", "problem_type", "pad_token_id")}
    ours = {name: value for name, value in vars(config).items() if name.startswith("distill_") or name == THRESHOLDS}
    return BertConfig(
        architectures=["BertForSequenceClassification"], vocab_size=config.vocab_size, hidden_size=config.width,
        num_hidden_layers=1, num_attention_heads=1, intermediate_size=config.width,
        max_position_embeddings=NO_LIMIT, **shared, **ours, **{NGRAMS: sizes},
    )  # fmt: skip
