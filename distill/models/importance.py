"""How much a classifier's logits would change without each of its attention heads and feed-forward channels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from distill.models.loading import layer_count, layer_list
from distill.models.pruning import parts_of, size_of
from distill.models.thresholds import SEVERAL


class Importance(NamedTuple):
    """The importance of each head, float64 (layers, heads), and channel (layers, channels), in squared logits."""

    heads: np.ndarray
    channels: np.ndarray


def importance_of(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, torch.Tensor]],
    *,
    seed: int,
    progress: Callable[[int], object] = lambda texts: None,
) -> Importance:
    """Return the loss that each head and channel of `model` prevents, in the mean over the texts of `batches`.

    The loss is `losses.logit_mse_loss` (or, if a text may have several labels, `label_mse_loss`) between the model
    with and without the part. With the whole model as the teacher, that loss and its gradient are zero, so what counts
    is the second order: half the square of the first-order change of the logits if a factor on the part goes from 1 to
    0. This is the Fisher information of the factors (Kwon et al. 2022, "A Fast Post-Training Pruning Framework for
    Transformers", equations 6 to 10), here for squared distances of logits. One backward pass per batch gives it: the
    logits are multiplied with a random vector whose covariance is that loss's second derivative, and each text has
    factors of its own. `seed` draws the vectors.

    A batch has input_ids and attention_mask, (texts, tokens), and of pairs token_type_ids. The weights get no gradient.
    """
    generator = torch.Generator().manual_seed(seed)
    parts, size = parts_of(model.config), size_of(model.config)
    counts = ((parts.heads, size.heads[0]), (parts.channels, size.channels[0]))
    sums = [torch.zeros(size.layers, count, dtype=torch.float64) for _, count in counts]
    factors: dict[tuple[int, int], torch.Tensor] = {}

    def scaled(place: tuple[int, int], count: int) -> Callable[[nn.Module, Any], Any]:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            (values,) = inputs  # (texts, tokens, count * size of one)
            factor = torch.ones(len(values), count, device=values.device, dtype=values.dtype, requires_grad=True)
            factors[place] = factor
            return (values * factor.repeat_interleave(values.shape[-1] // count, dim=1).unsqueeze(1),)

        return hook

    layers = layer_list(model, layer_count(model.config))[1]
    hooks = [
        layer.get_submodule(units.reads).register_forward_pre_hook(scaled((kind, index), count))
        for index, layer in enumerate(layers)
        for kind, (units, count) in enumerate(counts)
    ]
    trained, needed = model.training, [weight.requires_grad for weight in model.parameters()]
    seen = 0
    try:
        model.eval().requires_grad_(False)
        for batch in batches:
            logits = model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).logits.float()
            vectors = _vectors(logits.shape, several=model.config.problem_type == SEVERAL, generator=generator)
            (logits * vectors.to(logits.device)).sum().backward()
            for (kind, layer), factor in factors.items():
                assert factor.grad is not None
                sums[kind][layer] += factor.grad.double().square().sum(dim=0).cpu() / 2
            seen += len(logits)
            progress(len(logits))
    finally:
        for hook in hooks:
            hook.remove()
        model.train(trained)
        for weight, was_needed in zip(model.parameters(), needed, strict=True):
            weight.requires_grad_(was_needed)
    return Importance(*((total / max(1, seen)).numpy() for total in sums))


def _vectors(shape: torch.Size, *, several: bool, generator: torch.Generator) -> torch.Tensor:
    """Return random vectors (texts, classes) whose covariance is the second derivative of the loss on the logits.

    That of `logit_mse_loss` is the identity without the mean over the classes. A class at random, less the mean and
    scaled, has it too, and is never zero. That of `label_mse_loss` is the identity over the number of labels.
    """
    texts, classes = shape
    if several:
        signs = torch.randint(0, 2, (texts, classes), generator=generator) * 2 - 1
        return signs / classes**0.5
    drawn = nn.functional.one_hot(torch.randint(0, classes, (texts,), generator=generator), classes)
    return (drawn - 1 / classes) * classes**0.5
