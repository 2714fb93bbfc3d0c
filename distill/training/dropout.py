"""Dropout that draws its mask from 16 random bits an element, since torch on a CPU draws each one alone."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

LEVELS = 2**16  # of a probability: 0.1 becomes 0.100006, and the scale fits it exactly


@contextlib.contextmanager
def fast_dropout(model: nn.Module) -> Iterator[None]:
    """Within the block, the model's dropout layers draw their masks faster, from torch's generator of the CPU."""
    layers = [module for module in model.modules() if type(module) is nn.Dropout and not module.inplace]
    for layer in layers:
        layer.forward = functools.partial(_dropout, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _dropout(layer: nn.Dropout, hidden: torch.Tensor) -> torch.Tensor:
    dropped = round(layer.p * LEVELS)
    if not layer.training or dropped in (0, LEVELS):
        return functional.dropout(hidden, layer.p, layer.training)
    return _Dropout.apply(hidden, dropped)  # pyright: ignore[reportReturnType]


class _Dropout(torch.autograd.Function):
    """Zeroes an element with probability `dropped` / `LEVELS` and scales the others, so that the mean stays."""

    @staticmethod
    def forward(context: Any, hidden: torch.Tensor, dropped: int) -> torch.Tensor:
        count = hidden.numel()
        drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)  # four numbers of 16 bits each
        numbers = drawn.view(torch.int16)[:count].view(hidden.shape)
        mask = (numbers >= dropped - LEVELS // 2).to(hidden.dtype).mul_(LEVELS / (LEVELS - dropped))
        context.save_for_backward(mask)
        return hidden * mask

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # pyright: ignore
        (mask,) = context.saved_tensors
        return gradient * mask, None
