"""Lookup tables while they are trained: what a step adds to their gradients, and what that costs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def summed_by_row(model: nn.Module) -> Iterator[None]:
    """Within the block, backward passes add to the gradients of the model's lookup tables only the rows looked up.

    torch makes a gradient as large as the table in every pass, zeros nearly all of it, and adds it to the one before.
    A vocabulary of 30,522 words is half of a small encoder, and a part of a step looks up some hundred. The gradients
    are the same but for rounding, and dense: optimizers, clipping and DDP see no difference.
    """
    tables = [
        module
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        and module.weight.requires_grad
        and not module.sparse
        and not module.scale_grad_by_freq  # which torch knows for dense gradients alone
    ]
    hooks = [table.register_forward_pre_hook(_make_gradient) for table in tables]
    for table in tables:
        table.sparse = True
    try:
        yield
    finally:
        for table, hook in zip(tables, hooks, strict=True):
            table.sparse = False
            hook.remove()


def _make_gradient(table: nn.Embedding, _: Any) -> None:
    # Rows added to nothing would stay sparse. A table that nobody looks up keeps none: weight decay would move it.
    if table.weight.grad is None:
        table.weight.grad = torch.zeros_like(table.weight)
