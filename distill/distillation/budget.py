"""Find the size of a pruned student: the one that loses least among those that are within a budget."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from distill.models.importance import Importance
from distill.models.pruning import Kept, Size

STEP = 32  # channels: int8 kernels compute blocks of them, so fewer would save nothing
MOST_TRIES = 6  # sizes that are measured before one is taken
UNLIKELY = 1.2  # times the cost of a larger model
FINEST = 16  # smallest share of the channels, one in so many, for models that are narrower than that


def smallest(full: Size) -> Size:
    """Return the smallest size that a model of the size `full` can be pruned to."""
    return Size(1, 1, max(1, min(STEP, full.channels // FINEST)))


def sizes(full: Size) -> Iterator[Size]:
    """Yield every size that a model of the size `full` can be pruned to, also `full` itself."""
    step = smallest(full).channels
    channels = [*range(step, full.channels, step), full.channels]
    yield from itertools.starmap(Size, itertools.product(range(1, full.layers + 1), range(1, full.heads + 1), channels))


def grid(full: Size) -> list[Size]:
    """Return the sizes to measure, from which `estimate` gets the others: the corners, and half of the channels."""
    least = smallest(full)
    ends = [sorted({low, high}) for low, high in zip(least, full, strict=True)]
    ends[2] = sorted({*ends[2], max(least.channels, full.channels // 2)})
    return list(itertools.starmap(Size, itertools.product(*ends)))


def estimate(measured: Mapping[Size, float]) -> Callable[[Size], float]:
    """Return a function from a size to its cost, linear in each of its numbers between those `measured`.

    A layer's matrix products, and so nearly all of latency and bytes, are linear in its heads and in its channels, and
    the whole in the number of layers. `measured` has a value for every combination of some numbers of layers, heads and
    channels (see `grid`), between the smallest and largest of which the sizes must be.
    """
    axes = [sorted({size[axis] for size in measured}) for axis in range(3)]

    def estimated(size: Size) -> float:
        corners: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
        for axis, value in zip(axes, size, strict=True):
            above = min(int(np.searchsorted(axis, value)), len(axis) - 1)
            low, high = axis[max(0, above - 1)], axis[above]
            share = (value - low) / (high - low) if high > low else 1.0
            corners = [
                ((*corner, end), weight * part)
                for corner, weight in corners
                for end, part in ((low, 1 - share), (high, share))
                if part
            ]
        return sum(weight * measured[Size(*corner)] for corner, weight in corners)

    return estimated


def contradiction(measured: Mapping[Size, float]) -> tuple[Size, Size] | None:
    """Return the pair of sizes of which the smaller costs most more than the larger; None if it is below `UNLIKELY`."""
    pairs = [
        (small, large)
        for small, large in itertools.permutations(measured, 2)
        if all(low <= high for low, high in zip(small, large, strict=True))
    ]
    worst = max(pairs, key=lambda pair: measured[pair[0]] / measured[pair[1]], default=None)
    return worst if worst and measured[worst[0]] >= UNLIKELY * measured[worst[1]] else None


def what_to_keep(importance: Importance, size: Size) -> Kept:
    """Return what a model of this size keeps: the most important layers, and of each its most important parts.

    A layer is as important as all of its heads and channels together. Parts that are equally important are kept from
    the first. So what a smaller size keeps is also in a larger one, if none of its numbers is smaller.
    """
    layers = tuple(sorted(_by_importance(importance)[: size.layers]))
    heads = tuple(_largest(importance.heads[layer], size.heads) for layer in layers)
    return Kept(layers, heads, tuple(_largest(importance.channels[layer], size.channels) for layer in layers))


def _by_importance(importance: Importance) -> list[int]:
    """Return the layers, the most important one first."""
    return np.argsort(-(importance.heads.sum(axis=1) + importance.channels.sum(axis=1)), kind="stable").tolist()


def _largest(values: np.ndarray, count: int) -> tuple[int, ...]:
    return tuple(sorted(np.argsort(-values, kind="stable")[:count].tolist()))


def losses_of(importance: Importance, sizes: Iterable[Size]) -> dict[Size, float]:
    """Return for each size the importance of all that it does not keep (see `what_to_keep`), in squared logits."""
    order = list(_by_importance(importance))
    heads, channels = (-np.sort(-values[order], axis=1) for values in importance)
    of_heads, of_channels = (values.cumsum(axis=1).cumsum(axis=0) for values in (heads, channels))
    total = of_heads[-1, -1] + of_channels[-1, -1]
    left = {
        size: of_heads[size.layers - 1, size.heads - 1] + of_channels[size.layers - 1, size.channels - 1]
        for size in sizes
    }
    return {size: max(0.0, float(total - kept)) for size, kept in left.items()}  # rounding may go below


def choose(costs: Mapping[Size, float], losses: Mapping[Size, float], budget: float) -> Size | None:
    """Return the size of least loss whose cost is at most `budget`; None if there is none.

    Of sizes with equal losses, it is the one of least cost.
    """
    within = [size for size, cost in costs.items() if cost <= budget]
    return min(within, key=lambda size: (losses[size], costs[size], size), default=None)


def search(
    losses: Mapping[Size, float],
    guesses: Mapping[Size, float],
    measured: Mapping[Size, float],
    measure: Callable[[Size], float],
    budget: float,
) -> Size:
    """Return a size that is measured within `budget`, of as little loss as can be found in a few measurements.

    `guesses` are estimated costs of all sizes, and `measured` the costs that are known, of which one must be within the
    budget. The size that would lose least is measured. That corrects the other guesses by the same ratio, and so on
    until the size that would lose least is one that was measured. After `MOST_TRIES`, the best of those is taken.
    """
    known, ratio = dict(measured), 1.0
    for _ in range(MOST_TRIES):
        chosen = choose({size: ratio * guess for size, guess in guesses.items()} | known, losses, budget)
        if chosen is None or chosen in known:
            break
        known[chosen] = measure(chosen)
        ratio = known[chosen] / guesses[chosen]
    found = choose(known, losses, budget)
    assert found is not None
    return found
