"""Trace attention as one node of ONNX Runtime, in the architectures that let it be replaced."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import bidirectional_mask_function, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from distill.models.loading import BERT_LIKE

NODE = "MultiHeadAttention"  # of the domain com.microsoft
NAME = "distill_onnx"  # among transformers' attention implementations
MPNET = "mpnet"  # computes its attention itself, with a bias for each distance between two tokens
# Their attention is a softmax over query times key, plus a mask that transformers builds, plus a bias; nothing more.
ONE_NODE = {
    *BERT_LIKE, "distilbert", "albert", "data2vec-text", "modernbert", "nomic_bert", "gte", "jina_embeddings_v3",
    "eurobert", "qwen2", "qwen3", "llama", "mistral", "gemma3_text", MPNET,
}  # fmt: skip


def make_attention_one_node(model: PreTrainedModel) -> None:
    """Let a trace of `model` write each attention as one node; call it on a copy, because it changes the model.

    The model's architecture must be in `ONE_NODE`.
    """
    AttentionInterface.register(NAME, _node)
    AttentionMaskInterface.register(NAME, _mask)
    if model.config.model_type == MPNET:
        _let_mpnet_be_replaced(model)
    else:
        model.set_attn_implementation(NAME)


def _node(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Trace an attention as one node: tensors (batch, heads, tokens, size) in, (batch, tokens, heads, size) out.

    The mask is either (batch, tokens), as `_mask` returns it, or a bias (batch, 1, tokens, tokens). `position_bias` is
    (1, heads, tokens, tokens).
    """
    batch, heads, tokens, size = query.shape
    if key.shape[1] < heads:  # several queries share a key: grouped-query attention
        key, value = (tensor.repeat_interleave(heads // tensor.shape[1], dim=1) for tensor in (key, value))
    padding, bias = (attention_mask, position_bias) if attention_mask.ndim == 2 else (None, attention_mask)
    inputs = [tensor.transpose(1, 2).reshape(batch, tensor.shape[2], heads * size) for tensor in (query, key, value)]
    output = torch.onnx.ops.symbolic(
        f"com.microsoft::{NODE}",
        [*inputs, None, padding, bias],
        {"num_heads": heads, "scale": scaling or size**-0.5},
        dtype=query.dtype,
        shape=inputs[0].shape,
        version=1,
    )
    return output.reshape(batch, tokens, heads, size), None


def _mask(*_: Any, mask_function: Any, attention_mask: torch.Tensor, **settings: Any) -> torch.Tensor:
    """Return the mask that the node needs.

    If every token may read every other, that is 1 for a token and 0 for padding: int32 (batch, tokens). For windows and
    causal attention it is a bias, which transformers builds: (batch, 1, tokens, tokens).
    """
    if mask_function is bidirectional_mask_function:
        return attention_mask.to(torch.int32)
    return eager_mask(mask_function=mask_function, attention_mask=attention_mask, **settings)


def _let_mpnet_be_replaced(model: PreTrainedModel) -> None:
    """Make MPNet ask transformers' registry for its attention, as other architectures do."""
    model.config._attn_implementation = NAME
    encoder: Any = model.base_model.encoder
    compute = encoder.compute_position_bias
    encoder.compute_position_bias = lambda hidden: compute(hidden[:1])  # it is the same for every text
    for layer in encoder.layer:
        attention = layer.attention.attn
        attention.config = model.config
        attention.forward = MethodType(_mpnet_attention, attention)


def _mpnet_attention(
    module: Any,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor,
    position_bias: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor]:
    """Compute what MPNetSelfAttention does, through the implementation that its configuration names."""
    batch, tokens = hidden_states.shape[:2]
    heads = (batch, tokens, module.num_attention_heads, module.attention_head_size)
    query, key, value = (part(hidden_states).view(heads).transpose(1, 2) for part in (module.q, module.k, module.v))
    implementation = ALL_ATTENTION_FUNCTIONS[module.config._attn_implementation]
    output, _ = implementation(module, query, key, value, attention_mask, position_bias=position_bias)
    return (module.o(output.reshape(batch, tokens, -1)),)
