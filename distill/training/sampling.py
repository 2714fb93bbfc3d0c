"""The order of training texts: steps of like length, so that little is spent on padding, and at random otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

POOL_STEPS = 50  # that texts are sorted within: more pad less, fewer mix better; transformers' own choice


class SimilarLengths(torch.utils.data.Sampler[int]):
    """Indices of which every `step_size` in a row, the examples of a step, are of similar length; steps come shuffled.

    transformers' group_by_length leaves the steps of a pool in descending order, so that a model sees long texts, then
    short ones, over and over; trained from random weights it then ends far worse (docs/results.md). Here lengths in a
    row are independent. The longest step comes first: what does not fit into memory fails at once. The order depends on
    `seed` and epoch alone.
    """

    def __init__(self, lengths: Sequence[int], step_size: int, seed: int):
        self.lengths = np.asarray(lengths)
        self.step_size = step_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Draw another order from now on; Trainer calls it at the start of each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.lengths))
        rest = len(order) % self.step_size
        last, order = order[:rest], order[rest:]  # a shorter step can only come last
        pools = np.split(order, range(POOL_STEPS * self.step_size, len(order), POOL_STEPS * self.step_size))
        sorted_pools = [pool[np.argsort(-self.lengths[pool], kind="stable")] for pool in pools]
        steps = rng.permutation(np.concatenate(sorted_pools).reshape(-1, self.step_size))
        if len(steps):
            longest = self.lengths[steps].max(axis=1).argmax()
            steps[[0, longest]] = steps[[longest, 0]]
        yield from map(int, (*steps.ravel(), *last))
