"""Attention in three operations instead of torch's fused one, whose backward pass is slow in bf16 on a CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from distill.models.first_token import ARCHITECTURES

UNFUSED = "distill_unfused"  # among the names of attention implementations
FUSED = "sdpa"
MOST_PAIRS = 512**2  # of tokens in a batch: with more, the fused attention needs far less memory


@contextlib.contextmanager
def unfused_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, the model computes the same attention as a product, a softmax and a product.

    This is for training, and for batches whose scores (texts, heads, tokens, tokens) are few: see `MOST_PAIRS`. Nothing
    changes if the model does not use torch's fused attention, or if its attention may be more than this.
    """
    config = model.config
    known = config.model_type in ARCHITECTURES and not getattr(config, "is_decoder", False)
    if config._attn_implementation != FUSED or not known:
        yield
        return
    AttentionInterface.register(UNFUSED, _attention)
    AttentionMaskInterface.register(UNFUSED, sdpa_mask)
    model.set_attn_implementation(UNFUSED)
    try:
        yield
    finally:
        model.set_attn_implementation(FUSED)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention's output, (batch, tokens, heads, size), of tensors (batch, heads, tokens, size)."""
    if not module.training or len(query) * query.shape[2] * key.shape[2] > MOST_PAIRS:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **settings
        )
    scores = torch.matmul(query * (scaling or query.shape[-1] ** -0.5), key.transpose(-1, -2))
    if attention_mask is not None:  # True where a token may be read, (batch, 1, queries, keys)
        lowest = torch.finfo(scores.dtype).min  # added rather than filled in, which would cost a copy backwards too
        scores = scores + torch.zeros((), dtype=scores.dtype).masked_fill(~attention_mask, lowest)
    weights = functional.dropout(scores.softmax(dim=-1), dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None
