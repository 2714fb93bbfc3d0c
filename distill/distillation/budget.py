"""Find what a pruned student keeps: the parts whose loss is least among those that are within a budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from distill.models.importance import Importance
from distill.models.pruning import Kept, Size, even

STEP = 32  # channels: int8 kernels compute blocks of them, so fewer would save nothing
MOST_TRIES = 6  # sizes that are measured before one is taken
UNLIKELY = 1.2  # times the cost of a larger model
FINEST = 16  # smallest share of the channels, one in so many, for models that are narrower than that
PARTS_OF_BUDGET = 2000  # beyond the smallest model; a layer's cost is rounded up to one of so many
CUT_OUT = -1  # in place of the number of a choice
TOO_LARGE = 0.999  # of an estimate whose size was over the budget: the most that the next estimate may be
CLOSE = 0.03  # share that may stay unused, of what the budget allows beyond the smallest model


def smallest(whole: Size) -> Size:
    """Return the smallest size that a model of the size `whole` can be pruned to."""
    return even(1, 1, _step(whole))


def _step(whole: Size) -> int:
    return max(1, min(STEP, whole.channels[0] // FINEST))


def widths(whole: Size) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of heads, and of channels, that a layer can be pruned to, each from the smallest to all."""
    step, channels = _step(whole), whole.channels[0]
    return np.arange(1, whole.heads[0] + 1), np.array([*range(step, channels, step), channels])


def grid(whole: Size) -> list[Size]:
    """Return the sizes to measure, from which `estimate` gets the others; all layers of each are of the same size."""
    heads, channels = widths(whole)
    half = max(channels[0], whole.channels[0] // 2)
    numbers = ({1, whole.layers}, {1, int(heads[-1])}, {int(channels[0]), int(half), int(channels[-1])})
    return list(itertools.starmap(even, itertools.product(*map(sorted, numbers))))


@dataclass(frozen=True)
class Estimate:
    """What layers cost, by their numbers of heads and channels (see `widths`): arrays of (heads, channels).

    The cost of the `last` layer includes all that is not in layers. It differs from that of every `other` layer,
    because it may compute only the first token of a text (see models/first_token.py).
    """

    heads: np.ndarray
    channels: np.ndarray
    last: np.ndarray
    other: np.ndarray

    def of(self, size: Size) -> float:
        """Return the cost of a model."""
        at = [
            (int(np.searchsorted(self.heads, heads)), int(np.searchsorted(self.channels, channels)))
            for heads, channels in zip(*size, strict=True)
        ]
        return float(self.last[at[-1]] + sum(self.other[place] for place in at[:-1]))


def estimate(measured: Mapping[Size, float], whole: Size) -> Estimate:
    """Return what each layer costs, linear in heads and in channels between the sizes of `grid` that are `measured`.

    A layer's matrix products, and so nearly all of latency and bytes, are linear in its heads and in its channels. A
    model of one layer costs as much as the last layer of any other. What remains of a model of all layers is divided
    equally between the others.
    """
    heads, channels = widths(whole)

    def between(layers: int) -> np.ndarray:
        some_channels = sorted({size.channels[0] for size in grid(whole)})
        at_ends = [
            np.interp(channels, some_channels, [measured[even(layers, end, some)] for some in some_channels])
            for end in (1, int(heads[-1]))
        ]
        share = (heads - 1)[:, None] / max(1, heads[-1] - 1)
        return (1 - share) * at_ends[0] + share * at_ends[1]

    last = between(1)
    other = (between(whole.layers) - last) / max(1, whole.layers - 1)
    return Estimate(heads, channels, last, np.maximum(other, 0.0))


def contradiction(measured: Mapping[Size, float]) -> tuple[Size, Size] | None:
    """Return the pair of sizes of which the smaller costs most more than the larger; None if it is below `UNLIKELY`.

    All layers of a size must be equal, as in `grid`.
    """
    pairs = [
        (small, large)
        for small, large in itertools.permutations(measured, 2)
        if small.layers <= large.layers and small.heads[0] <= large.heads[0] and small.channels[0] <= large.channels[0]
    ]
    worst = max(pairs, key=lambda pair: measured[pair[0]] / measured[pair[1]], default=None)
    return worst if worst and measured[worst[0]] >= UNLIKELY * measured[worst[1]] else None


def what_to_keep(importance: Importance, size: Size) -> Kept:
    """Return what a model of this size keeps: the most important layers, and of each its most important parts.

    A layer is as important as all of its heads and channels together.
    """
    totals = importance.heads.sum(axis=1) + importance.channels.sum(axis=1)
    return most_important(importance, dict(zip(_largest(totals, size.layers), zip(*size, strict=True), strict=True)))


def most_important(importance: Importance, layers: Mapping[int, tuple[int, int]]) -> Kept:
    """Return what is kept if each of `layers` keeps so many heads and channels: the most important ones."""
    return Kept(
        tuple(layers),
        tuple(_largest(importance.heads[layer], heads) for layer, (heads, _) in layers.items()),
        tuple(_largest(importance.channels[layer], channels) for layer, (_, channels) in layers.items()),
    )


def _largest(values: np.ndarray, count: int) -> tuple[int, ...]:
    """Return the places of the largest values, rising; of equal ones the first."""
    return tuple(sorted(np.argsort(-values, kind="stable")[:count].tolist()))


def loss_of(importance: Importance, kept: Kept) -> float:
    """Return the importance of all that is not kept, as a share of the whole."""
    whole = importance.heads.sum() + importance.channels.sum()
    left = sum(
        values[layer, list(units)].sum()
        for values, parts in zip(importance, (kept.heads, kept.channels), strict=True)
        for layer, units in zip(kept.layers, parts, strict=True)
    )
    return max(0.0, float(1 - left / whole)) if whole else 0.0  # rounding may go below


class _Choice(NamedTuple):
    """What a layer keeps, whether it is the last that is kept, and what it costs in parts of the budget."""

    heads: int
    channels: int
    is_last: bool
    cost: int


def choose(importance: Importance, costs: Estimate, used: Size, budget: float) -> Kept | None:
    """Return what loses least importance among all that costs less than `budget`; None if nothing does.

    Each layer has its own numbers of heads and channels, or is cut out, which loses all of its importance. This is a
    knapsack problem with one choice for each layer, solved by dynamic programming (as in ZipLM, Kurtic et al. 2023,
    arXiv:2302.04089), from the last layer to the first. What a layer costs beyond the smallest one is rounded up to a
    `PARTS_OF_BUDGET`th of what the budget allows. No layer keeps more heads or channels than are `used` in it.
    """
    least_of_all = costs.last.min()
    if least_of_all >= budget:
        return None
    unit = (budget - least_of_all) / PARTS_OF_BUDGET
    choices = [
        _Choice(int(some), int(others), is_last, cost)
        for is_last, of_layer in ((False, costs.other), (True, costs.last - least_of_all))
        for (row, some), (column, others) in itertools.product(enumerate(costs.heads), enumerate(costs.channels))
        if (cost := math.ceil(of_layer[row, column] / unit)) <= PARTS_OF_BUDGET
    ]
    least = np.full(PARTS_OF_BUDGET + 1, np.inf)  # by budget: the loss in later layers of which at least one is kept
    chosen: list[np.ndarray] = []  # by layer, the last one first, and by budget: the number of the choice
    cut_off = 0.0  # the importance of all later layers
    for layer in reversed(range(len(importance.heads))):
        kept_heads, kept_channels = (np.sort(values[layer])[::-1].cumsum() for values in importance)
        total = kept_heads[-1] + kept_channels[-1]
        best, numbers = least + total, np.full(len(least), CUT_OUT)
        for number, (heads, channels, is_last, cost) in enumerate(choices):
            later = cut_off if is_last else least[: len(least) - cost]
            loss = later + (total - kept_heads[heads - 1] - kept_channels[channels - 1])
            is_better = loss < best[cost:]
            best[cost:] = np.where(is_better, loss, best[cost:])
            numbers[cost:][is_better] = number
        least, cut_off = best, cut_off + total
        chosen.insert(0, numbers)
    if not np.isfinite(least[-1]):
        return None
    layers: dict[int, tuple[int, int]] = {}
    left, is_last = PARTS_OF_BUDGET, False
    for layer, numbers in enumerate(chosen):
        if not is_last and numbers[left] != CUT_OUT:
            heads, channels, is_last, cost = choices[numbers[left]]
            layers[layer] = min(heads, used.heads[layer]), min(channels, used.channels[layer])
            left -= cost
    return most_important(importance, layers)


def search(
    choose: Callable[[float], Kept | None],
    estimated: Callable[[Size], float],
    known: Mapping[Size, float],
    measure: Callable[[Kept], float],
    budget: float,
    least: float,
) -> list[Kept]:
    """Return what `choose` finds that is measured within `budget`, the last tried first; that may be nothing.

    What is chosen is measured, unless the cost of its size is `known`. That corrects all estimates by the same ratio,
    and so on. The search ends with a cost that is within the budget and `CLOSE` to it, if nothing else would be chosen,
    or after `MOST_TRIES`. `least` is what the smallest model costs.
    """
    costs, found, ratio, limit = dict(known), [], 1.0, float("inf")
    for _ in range(MOST_TRIES):
        kept = choose(min(budget / ratio, limit))
        if kept is None or kept in found:
            break
        guess = estimated(kept.size)
        if kept.size not in costs:
            costs[kept.size] = measure(kept)
        cost = costs[kept.size]
        if cost <= budget:
            found.insert(0, kept)
            if cost >= budget - CLOSE * (budget - least):
                break
        else:
            limit = min(limit, TOO_LARGE * guess)
        ratio = cost / guess
    return found
