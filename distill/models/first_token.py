"""A shortcut through the last layer: compute it only for the first token, if the classification head reads no other."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from distill.models.loading import BERT_LIKE, layer_count, layer_list

# For each architecture: a layer's attention, its query projection, and the modules that read the attention's output.
ARCHITECTURES = {
    **dict.fromkeys((*BERT_LIKE, "data2vec-text"), ("attention.self", "query", ("attention.output",))),
    **dict.fromkeys(
        ("nomic_bert", "gte", "jina_embeddings_v3"),
        ("self_attn", "q_proj", ("self_attn.o_proj", "post_attention_layernorm")),
    ),
    "distilbert": ("attention", "q_lin", ("attention.out_lin", "sa_layer_norm")),
    "mpnet": ("attention.attn", "q", ("attention.attn.o", "attention.LayerNorm")),
}


@dataclass(frozen=True)
class LastLayer:
    """The parts of a model's last layer that `first_token_only` changes, and the attention's configuration within it.

    Looking them up takes as long as a small batch, so it is done once per model.
    """

    attention: nn.Module
    query: nn.Module
    after: tuple[nn.Module, ...]
    config: PretrainedConfig


def last_layer(model: PreTrainedModel) -> LastLayer | None:
    """Return the model's last layer; None if the head may read more than the first token."""
    if model.config.model_type not in ARCHITECTURES:
        return None
    attention_name, query, after = ARCHITECTURES[model.config.model_type]
    layer = layer_list(model, layer_count(model.config))[1][-1]
    attention = layer.get_submodule(attention_name)
    config = copy.copy(getattr(attention, "config", None) or model.config)
    name = config._attn_implementation
    if name in ALL_ATTENTION_FUNCTIONS:  # "eager" is not among them: it keeps computing every token, with equal results
        AttentionInterface.register(f"{name}_of_first_token", _of_first_token(ALL_ATTENTION_FUNCTIONS[name]))
        config._attn_implementation = f"{name}_of_first_token"
    return LastLayer(attention, attention.get_submodule(query), tuple(map(layer.get_submodule, after)), config)


@contextlib.contextmanager
def first_token_only(layer: LastLayer | None) -> Iterator[None]:
    """Within the block, the layer computes queries, attention and everything after them only for the first token.

    The head reads nothing else, so logits and gradients stay the same except for rounding. For the other tokens the
    layer still computes keys and values: a sixth of its matrix products, and no attention. `last_hidden_state` then
    holds only the first token. With None, nothing changes.
    """
    if layer is None:
        yield
        return
    config = getattr(layer.attention, "config", None)  # MPNet's attention has none, and does not read it
    # The modules in between reshape to the length of the input, so every position gets the first token's query.
    narrow = type(layer.query).forward
    layer.query.forward = lambda hidden: narrow(layer.query, hidden[:, :1]).expand(-1, hidden.shape[1], -1)
    layer.attention.config = layer.config
    hooks = [module.register_forward_pre_hook(_first_tokens) for module in layer.after]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        layer.attention.config = config
        del layer.query.forward


def _first_tokens(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(tensor[:, :1] for tensor in inputs)


def _of_first_token(attention: Callable[..., Any]) -> Callable[..., Any]:
    """Return an attention function with the signature of transformers that computes only the first query."""

    def forward(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **settings: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if attention_mask is not None and attention_mask.ndim == 4:  # (batch, heads, queries, keys)
            attention_mask = attention_mask[:, :, :1]
        if "position_bias" in settings:
            settings["position_bias"] = settings["position_bias"][:, :, :1]
        output, weights = attention(module, query[:, :, :1], key, value, attention_mask, **settings)
        return output.expand(-1, query.shape[2], -1, -1), weights

    return forward
