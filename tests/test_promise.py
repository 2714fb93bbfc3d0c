"""The promise of a cascade: its tests are valid, its thresholds keep it, and cost no more than needed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from distill.errors import PromiseError
from distill.measuring import promise as promise_module
from distill.measuring.promise import Promise, Steps, agreement_p_value, cheapest_cascade, drop_p_value


@pytest.fixture
def few_combinations(monkeypatch):
    """Fewer thresholds are tried, which is faster and changes nothing that is promised."""
    monkeypatch.setattr(promise_module, "COMBINATIONS", 200)


def population(count, steps, seed, *, sharpness=4.0):
    """Answers of `steps` classifiers to `count` texts of two classes; the surer one is, the oftener it is right.

    Also returns the gold labels, of which the last classifier has most right.
    """
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, 2, count)
    confidence, answers = [], []
    for step in range(steps):
        logit = np.abs(rng.normal(0, sharpness * (1 + step), count))
        sure = 1 / (1 + np.exp(-logit))
        right = rng.random(count) < sure
        confidence.append(sure)
        answers.append(np.where(right, gold, 1 - gold))
    return Steps(np.stack(confidence), np.stack(answers), [10.0 ** (step - steps + 2) for step in range(steps)]), gold


@given(st.integers(0, 40), st.integers(40, 400), st.floats(0.5, 0.999))
def test_the_p_value_of_agreement_is_the_exact_binomial_one(misses, texts, share):
    agrees = np.arange(texts) >= misses
    wanted = binomtest(texts - misses, texts, share, alternative="greater").pvalue
    assert agreement_p_value(agrees, share) == pytest.approx(wanted, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("lost", "gained"), [(0.03, 0.02), (0.01, 0.0), (0.3, 0.29)])
def test_a_drop_that_is_just_broken_is_proved_in_at_most_one_of_twenty_samples(lost, gained):
    rng = np.random.default_rng(0)
    draws = rng.choice([1, -1, 0], p=[lost, gained, 1 - lost - gained], size=(600, 800))
    wrong = np.mean([drop_p_value(row, lost - gained) <= 0.05 for row in draws])
    assert wrong <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 600)


def test_a_drop_that_is_kept_by_far_is_proved():
    rng = np.random.default_rng(0)
    draws = rng.choice([1, -1, 0], p=[0.01, 0.01, 0.98], size=(100, 2_500))
    assert np.mean([drop_p_value(row, 0.01) <= 0.05 for row in draws]) > 0.8


@pytest.mark.parametrize("steps", [2, 3])
@pytest.mark.parametrize("promise", [Promise(agree=0.97), Promise(accuracy_drop=0.03)])
def test_the_promise_holds_in_nineteen_of_twenty_samples(steps, promise, few_combinations):
    everything, gold = population(10_000, steps, seed=1)
    rng, kept, early = np.random.default_rng(2), [], []
    for _ in range(100):
        sample = rng.choice(10_000, 600)
        found = cheapest_cascade(everything.of(sample), gold[sample], promise)
        thresholds = found.thresholds if found else (np.inf,) * (steps - 1)
        answers, last = everything.answers_of(thresholds), everything.answers[-1]
        if promise.agree:
            kept.append((answers == last).mean() >= promise.agree)
        else:
            kept.append((last == gold).mean() - (answers == gold).mean() <= promise.accuracy_drop)
        early.append((everything.answered_by(thresholds) < steps - 1).mean())
    assert np.sum(kept) >= 95
    assert np.median(early) > 0.1  # and not by passing on every text


def test_three_steps_are_cheaper_than_the_last_one_alone_and_than_two():
    steps, gold = population(3_000, 3, seed=3)
    three = cheapest_cascade(steps, gold, Promise(agree=0.9))
    pair = Steps(steps.confidence[1:], steps.answers[1:], steps.seconds[1:])
    two = cheapest_cascade(pair, gold, Promise(agree=0.9))
    costs = steps.mean_seconds(three.thresholds), pair.mean_seconds(two.thresholds), steps.seconds[-1]
    assert costs[0] < costs[1] < costs[2]


@pytest.mark.parametrize(
    "promise", [Promise(agree=0.98), Promise(agree=0.9), Promise(accuracy_drop=0.02), Promise(accuracy_drop=0.001)]
)
@pytest.mark.parametrize("steps", [2, 3])
def test_the_number_of_texts_needed_is_the_least_that_can_prove_it(promise, steps):
    needed = promise.texts_needed(steps)

    def proved(count):
        same = Steps(np.full((steps, count), 0.9), np.zeros((steps, count), int), [1.0] * steps)
        return cheapest_cascade(same, np.zeros(count, int), promise) is not None

    assert proved(needed) and not proved(needed - 2)


def test_a_step_that_is_always_wrong_answers_nothing_and_costs_nothing():
    steps, gold = population(3_000, 3, seed=4)
    steps.answers[0] = 1 - steps.answers[-1]
    found = cheapest_cascade(steps, gold, Promise(agree=0.95))
    assert np.isinf(found.thresholds[0]) and np.isfinite(found.thresholds[1])
    pair = Steps(steps.confidence[1:], steps.answers[1:], steps.seconds[1:])
    assert steps.mean_seconds(found.thresholds) == pytest.approx(pair.mean_seconds(found.thresholds[1:]))


def test_a_cascade_of_many_classifiers_costs_hardly_more_than_one_of_the_right_three(few_combinations):
    steps, gold = population(1_500, 7, seed=5, sharpness=1.0)
    many = cheapest_cascade(steps, gold, Promise(agree=0.9))
    some = Steps(steps.confidence[[2, 4, 6]], steps.answers[[2, 4, 6]], [steps.seconds[step] for step in (2, 4, 6)])
    few = cheapest_cascade(some, gold, Promise(agree=0.9))
    assert steps.mean_seconds(many.thresholds) <= 1.2 * some.mean_seconds(few.thresholds) < steps.seconds[-1]


@pytest.mark.parametrize("wrong", [{}, {"agree": 0.9, "accuracy_drop": 0.1}, {"agree": 98}, {"agree": 1.0},
                                   {"agree": float("nan")}, {"accuracy_drop": 0.0}])  # fmt: skip
def test_an_impossible_promise_is_refused(wrong):
    with pytest.raises(PromiseError):
        Promise(**wrong)


def test_a_cascade_that_disagrees_everywhere_is_not_made():
    steps = Steps(np.full((2, 500), 0.9), np.stack([np.zeros(500, int), np.ones(500, int)]), [1.0, 2.0])
    assert cheapest_cascade(steps, np.zeros(500, int), Promise(agree=0.9)) is None


@given(st.integers(1, 4), st.data())
def test_each_text_goes_to_the_first_step_that_is_sure_enough(early, data):
    count = 20
    numbers = st.lists(st.floats(0, 1), min_size=count, max_size=count)
    confidence = np.array([data.draw(numbers) for _ in range(early + 1)])
    thresholds = [data.draw(st.floats(0, 1)) for _ in range(early)]
    steps = Steps(confidence, np.tile(np.arange(early + 1)[:, None], count), list(range(1, early + 2)))
    for text, step in enumerate(steps.answered_by(thresholds)):
        sure = [confidence[index, text] >= threshold for index, threshold in enumerate(thresholds)] + [True]
        assert step == sure.index(True)
    wanted = np.mean([sum(range(1, step + 2)) for step in steps.answers_of(thresholds)])
    assert steps.mean_seconds(thresholds) == pytest.approx(wanted)
