"""Attention in three operations instead of torch's fused one, whose backward pass is slow in bf16 on a CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from distill.models.first_token import ARCHITECTURES

UNFUSED = "distill_unfused"  # among the names of attention implementations
FUSED = "sdpa"


@contextlib.contextmanager
def unfused_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, the model computes the same attention as a product, a softmax and a product.

    It holds the scores of all pairs of tokens, texts x heads x tokens x tokens, in memory. Nothing changes if the model
    does not use torch's fused attention, or is of an architecture whose attention may be more than this.
    """
    if model.config._attn_implementation != FUSED or model.config.model_type not in ARCHITECTURES:
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
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention's output, (batch, tokens, heads, size), of tensors (batch, heads, tokens, size)."""
    scores = torch.matmul(query * (scaling or query.shape[-1] ** -0.5), key.transpose(-1, -2))
    if attention_mask is not None:  # True where a token may be read, (batch, 1, queries, keys)
        lowest = torch.finfo(scores.dtype).min  # added rather than filled in, which would cost a copy backwards too
        scores = scores + torch.zeros((), dtype=scores.dtype).masked_fill(~attention_mask, lowest)
    weights = functional.dropout(scores.softmax(dim=-1), dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None
