"""Steps of texts of similar length, in an order that says nothing of length."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.training.sampling import SimilarLengths

LENGTHS = np.random.default_rng(0).integers(4, 512, 3_000)


def padding(order, step_size):
    steps = [LENGTHS[order[start : start + step_size]] for start in range(0, len(order), step_size)]
    return 1 - LENGTHS[order].sum() / sum(step.max() * len(step) for step in steps)


@given(st.lists(st.integers(1, 512), max_size=200), st.integers(1, 64), st.integers(0, 5))
def test_every_text_comes_once_an_epoch(lengths, step_size, epoch):
    sampler = SimilarLengths(lengths, step_size, seed=0)
    sampler.set_epoch(epoch)
    assert sorted(sampler) == list(range(len(lengths))) and len(sampler) == len(lengths)


def test_steps_are_of_similar_length_and_hardly_padded():
    order = np.array(list(SimilarLengths(LENGTHS, 16, seed=0)))
    assert padding(np.random.default_rng(0).permutation(len(LENGTHS)), 16) > 0.4
    assert padding(order, 16) < 0.03


def test_lengths_in_a_row_say_nothing_of_each_other():
    order = np.array(list(SimilarLengths(LENGTHS, 16, seed=0)))
    means = LENGTHS[order[:2_992].reshape(-1, 16)].mean(axis=1)[1:]  # all but the first, which is the longest
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.25  # of transformers' own: 0.95


def test_the_longest_step_comes_first():
    order = list(SimilarLengths(LENGTHS, 16, seed=3))
    assert LENGTHS[order[:16]].max() == LENGTHS.max()


@pytest.mark.parametrize("change", ["epoch", "seed"])
def test_another_epoch_or_seed_draws_other_steps(change):
    first, other = SimilarLengths(LENGTHS, 16, seed=0), SimilarLengths(LENGTHS, 16, seed=1 if change == "seed" else 0)
    other.set_epoch(1 if change == "epoch" else 0)
    assert list(first) == list(SimilarLengths(LENGTHS, 16, seed=0))
    steps = [
        {frozenset(step) for step in np.array(list(sampler)[:2_992]).reshape(-1, 16)} for sampler in (first, other)
    ]
    assert len(steps[0] & steps[1]) < 5  # other company, not only another order of the same steps
