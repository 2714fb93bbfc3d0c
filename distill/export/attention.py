"""Trace attention as one node of ONNX Runtime, in the architectures that let it be replaced."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import bidirectional_mask_function, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from distill.models.loading import BERT_LIKE

NODE = "MultiHeadAttention"  # of the domain com.microsoft
MODERNBERT = "modernbert"
# Their rotary embedding is written as one node too. OpenVINO computes it wrong where several queries share a key.
ROTARY_NODE = (MODERNBERT, "nomic_bert", "gte", "jina_embeddings_v3")
ROTATE = "apply_rotary_pos_emb"  # the function in the code of each architecture that has rotary positions
NAME = "distill_onnx"  # among transformers' attention implementations
MPNET = "mpnet"  # computes its attention itself, with a bias for each distance between two tokens
# Their attention is a softmax over query times key, plus a mask that transformers builds, plus a bias; nothing more.
ONE_NODE = {
    *BERT_LIKE, *ROTARY_NODE, MPNET, "distilbert", "albert", "data2vec-text", "eurobert", "qwen2", "qwen3", "llama",
    "mistral", "gemma3_text",
}  # fmt: skip


@contextlib.contextmanager
def attention_as_one_node(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, a trace of `model` writes each attention as one node, and so each rotary embedding.

    Call it on a copy, because it changes the model, whose architecture must be in `ONE_NODE`.
    """
    AttentionInterface.register(NAME, _node)
    AttentionMaskInterface.register(NAME, _mask)
    if model.config.model_type == MPNET:
        _let_mpnet_be_replaced(model)
    else:
        model.set_attn_implementation(NAME)
    if model.config.model_type == MODERNBERT:
        _separate_products(model)
    if model.config.model_type not in ROTARY_NODE:
        yield
        return
    code = sys.modules[type(model).__module__]
    rotate = getattr(code, ROTATE)
    setattr(code, ROTATE, _rotated)
    try:
        yield
    finally:
        setattr(code, ROTATE, rotate)


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


def _rotated(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, **_: Any
) -> tuple[torch.Tensor, ...]:
    """Trace the rotary embedding of query and key, (batch, heads, tokens, size), as one node each.

    `cos` and `sin` are (1 or batch, tokens, size), the same for every text, and their second half repeats the first.
    """
    tables = [table[0, :, : table.shape[-1] // 2].to(query.dtype) for table in (cos, sin)]
    first = torch.zeros(1, dtype=torch.long)  # the position of the first token
    rotated = []
    for tensor in (query, key):
        batch, heads, tokens, size = tensor.shape
        flat = tensor.transpose(1, 2).reshape(batch, tokens, heads * size)
        output = torch.onnx.ops.symbolic(
            "com.microsoft::RotaryEmbedding", [flat, first, *tables], {"num_heads": heads, "interleaved": 0},
            dtype=tensor.dtype, shape=flat.shape, version=1,
        )  # fmt: skip
        rotated.append(output.reshape(batch, tokens, heads, size).transpose(1, 2))
    return tuple(rotated)


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


def _separate_products(model: PreTrainedModel) -> None:
    """Let ModernBERT compute queries, keys and values apart, and both halves of its feed-forward part.

    Its one product for all of them would be cut up again, and to copy the parts takes a tenth of the time in int8.
    """
    encoder: Any = model.base_model
    for layer in encoder.layers:
        layer.attn.parts, layer.mlp.parts = _rows_apart(layer.attn.Wqkv, 3), _rows_apart(layer.mlp.Wi, 2)
        layer.attn.forward = MethodType(_modernbert_attention, layer.attn)
        layer.mlp.forward = MethodType(_modernbert_feed_forward, layer.mlp)


def _rows_apart(product: torch.nn.Linear, count: int) -> torch.nn.ModuleList:
    """Return `count` products that give the outputs of one, in order."""
    parts = torch.nn.ModuleList()
    for index, weight in enumerate(product.weight.chunk(count)):
        part = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=product.bias is not None, dtype=weight.dtype)
        part.weight = torch.nn.Parameter(weight.detach().clone())
        if product.bias is not None:
            part.bias = torch.nn.Parameter(product.bias.chunk(count)[index].detach().clone())
        parts.append(part)
    return parts


def _modernbert_attention(
    module: Any,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Compute what ModernBertAttention does, from separate products."""
    heads = (*hidden_states.shape[:-1], -1, module.head_dim)
    query, key, value = (part(hidden_states).view(heads).transpose(1, 2) for part in module.parts)
    query, key = _rotated(query, key, *position_embeddings)
    output = _node(module, query, key, value, attention_mask)[0]
    return module.Wo(output.flatten(start_dim=2)), None


def _modernbert_feed_forward(module: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """Compute what ModernBertMLP does, from separate products."""
    wide, gate = (part(hidden_states) for part in module.parts)
    return module.Wo(module.act(wide) * gate)
