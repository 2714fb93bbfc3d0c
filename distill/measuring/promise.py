"""Thresholds for a cascade that keep a promise on new texts, with a confidence that does not depend on luck.

The method is Learn then Test (Angelopoulos et al. 2021, arXiv 2110.01052) with fixed-sequence testing. Candidates for
the thresholds are put in an order that the tested texts had no part in, the most cautious first. Each is tested in
turn, and the first one that fails ends the search. The chance that any of those before it breaks the promise is then at
most 1 - confidence, however many were tested.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from distill.errors import PromiseError

CONFIDENCE = 0.95
COMBINATIONS = 2_000  # of the thresholds of some steps, that are tried on the texts that order the candidates
MOST_EARLY = 3  # steps that answer before the last one; of more, the best three are found
ORDERING_SHARE = 1 / 3  # of the texts; a cascade of two classifiers needs none, because it has one threshold to lower
SMALLEST_DROP = 1e-4  # of accuracy: some 40,000 texts prove it at best
CAUTIOUS = 20  # candidates before the first of those, which is lenient already


@dataclass(frozen=True)
class Steps:
    """What the classifiers of a cascade answer to the same texts, cheapest first.

    `confidence` has the probability of the likeliest label and `answers` that label, both (classifiers, texts);
    `seconds` is what a text costs each classifier.
    """

    confidence: np.ndarray
    answers: np.ndarray
    seconds: Sequence[float]

    def of(self, texts: np.ndarray) -> Steps:
        """Return the answers to some of the texts."""
        return Steps(self.confidence[:, texts], self.answers[:, texts], self.seconds)

    def answered_by(self, thresholds: Sequence[float]) -> np.ndarray:
        """Return for each text the first step that is as sure as its threshold, else the last; shape (texts,)."""
        sure = self.confidence[:-1] >= np.asarray(thresholds)[:, None]
        return np.where(sure.any(axis=0), sure.argmax(axis=0), len(self.answers) - 1)

    def answers_of(self, thresholds: Sequence[float]) -> np.ndarray:
        """Return the cascade's answers, shape (texts,)."""
        return self.answers[self.answered_by(thresholds), np.arange(self.answers.shape[1])]

    def costs(self, thresholds: Sequence[float]) -> np.ndarray:
        """Return what a text costs that is answered by each step: it pays for every step that reads it.

        A step whose threshold is infinite answers nothing, so it would be left out and costs nothing.
        """
        return np.cumsum(np.where(np.isfinite([*thresholds, 0.0]), self.seconds, 0.0))

    def mean_seconds(self, thresholds: Sequence[float]) -> float:
        """Return what a text costs on average."""
        return float(self.costs(thresholds)[self.answered_by(thresholds)].mean())


@dataclass(frozen=True)
class Promise:
    """What a cascade keeps on new texts, compared with its last classifier, with a confidence of `CONFIDENCE`.

    It gives the same answer to a share of at least `agree` of the texts, or it loses at most `accuracy_drop` (0.01 is
    one point of accuracy). One of the two is None.
    """

    agree: float | None = None
    accuracy_drop: float | None = None

    def __post_init__(self) -> None:
        if (self.agree is None) == (self.accuracy_drop is None):
            raise PromiseError("cascade: wants --agree F or --accuracy-drop F, one of the two")
        if self.agree is not None and not 0 < self.agree < 1:
            raise PromiseError(f"--agree: wants a share between 0 and 1, got {self.agree:g}")
        if self.accuracy_drop is not None and not SMALLEST_DROP <= self.accuracy_drop < 1:
            raise PromiseError(
                f"--accuracy-drop: wants a share from {SMALLEST_DROP:g} to below 1 (0.01 is one point), got "
                f"{self.accuracy_drop:g}"
            )

    def __str__(self) -> str:
        if self.agree is not None:
            return f"agrees with the last classifier on at least {100 * self.agree:.10g} % of new texts"
        return f"loses at most {100 * (self.accuracy_drop or 0):.10g} points of accuracy against the last classifier"

    def p_value(self, steps: Steps, thresholds: Sequence[float], gold_labels: np.ndarray) -> float:
        """Return a p-value for the claim that the cascade breaks the promise, from the texts of `steps`."""
        answers, last = steps.answers_of(thresholds), steps.answers[-1]
        if self.agree is not None:
            return agreement_p_value(answers == last, self.agree)
        right = [(found == gold_labels).astype(int) for found in (last, answers)]
        return drop_p_value(right[0] - right[1], self.accuracy_drop or 0.0)

    def texts_needed(self, steps: int) -> int:
        """Return the least number of texts with which a cascade of `steps` classifiers can prove the promise.

        With fewer, not even a cascade without a single disagreement would pass the test.
        """
        if self.agree is not None:
            tested = math.ceil(math.log(1 - CONFIDENCE) / math.log(self.agree))
        else:
            tested = 2
            while not self._no_loss_proves(tested):
                tested *= 2
            tested = tested // 2 + bisect.bisect_left(
                range(tested // 2, tested), True, key=lambda count: self._no_loss_proves(count)
            )
        return tested if steps == 2 else math.ceil(tested / (1 - ORDERING_SHARE))

    def _no_loss_proves(self, count: int) -> bool:
        return drop_p_value(np.zeros(count), self.accuracy_drop or 0.0) <= 1 - CONFIDENCE


def agreement_p_value(agrees: np.ndarray, share: float) -> float:
    """Return the chance of so few disagreements if the cascade agreed with its last step on less than `share`.

    `agrees` (texts,) says for each text whether the two gave the same answer. The test is the exact binomial one.
    """
    return float(binom.cdf(int((~agrees).sum()), len(agrees), 1 - share))


def drop_p_value(lost: np.ndarray, most: float) -> float:
    """Return a p-value for the claim that the cascade loses more than `most` of accuracy against its last step.

    `lost` (texts,) is 1 if only the last step is right, -1 if only the cascade is, else 0, in random order. Losses and
    gains offset each other, so no binomial test applies. This one bets against the claim, text by text: it is exact at
    any number of texts (Waudby-Smith and Ramdas 2023, section 4; bounded variables scaled to 0 to 1).
    """
    found, mean = (1 + np.asarray(lost, float)) / 2, (1 + most) / 2
    counts = np.arange(1, len(found) + 1)
    means = (0.5 + np.cumsum(found)) / (counts + 1)
    variances = (0.25 + np.cumsum((found - means) ** 2)) / (counts + 1)
    before = np.concatenate([[0.25], variances[:-1]])  # a bet may only use the texts before it
    bets = np.sqrt(2 * math.log(1 / (1 - CONFIDENCE)) / (len(found) * before))
    bets = np.minimum(bets, 0.75 / (1 - mean))
    wealth = np.cumsum(np.log1p(bets * (mean - found)))
    return float(min(1.0, math.exp(-max(0.0, wealth.max(initial=0.0)))))


@dataclass(frozen=True)
class Found:
    """The thresholds of a cascade, and how it does on the `tested` texts (their indices) that prove its promise."""

    thresholds: tuple[float, ...]
    tested: np.ndarray


def cheapest_cascade(
    steps: Steps, gold_labels: np.ndarray, promise: Promise, *, progress: Callable[[int], object] = lambda done: None
) -> Found | None:
    """Return the cheapest cascade that keeps the `promise`; None if no cascade is sure to.

    The texts are shuffled first. With more than two classifiers, a third of them order the candidates, and only the
    others are tested on.
    """
    texts = np.random.default_rng(0).permutation(steps.answers.shape[1])
    is_pair = len(steps.answers) == 2
    split = 0 if is_pair else round(ORDERING_SHARE * len(texts))
    tested = texts[split:]
    of_tested, gold_labels = steps.of(tested), gold_labels[tested]
    best: tuple[float, ...] | None = None
    for thresholds in _lowered(of_tested) if is_pair else _by_risk(steps.of(texts[:split])):
        progress(1)
        if not promise.p_value(of_tested, thresholds, gold_labels) <= 1 - CONFIDENCE:
            break
        if best is None or of_tested.mean_seconds(thresholds) < of_tested.mean_seconds(best):
            best = thresholds
    return None if best is None else Found(best, tested)


def _lowered(steps: Steps) -> Iterator[tuple[float]]:
    """Yield thresholds from the highest: all that make a difference, or `COMBINATIONS` of them."""
    values = np.unique(steps.confidence[0])[::-1]
    chosen = np.unique(np.linspace(0, len(values) - 1, min(len(values), COMBINATIONS)).round().astype(int))
    yield from ((float(value),) for value in values[chosen])


def _by_risk(steps: Steps) -> Iterator[tuple[float, ...]]:
    """Yield the cheapest thresholds for each number of disagreements with the last step, the fewest first.

    Before them come more cautious ones, at which fewer texts are answered early.
    """
    count = steps.answers.shape[1]
    tried = []
    disagrees, columns = steps.answers != steps.answers[-1], np.arange(count)
    for thresholds in _combinations(steps.confidence[:-1]):
        answered_by = steps.answered_by(thresholds)
        cost = float(steps.costs(thresholds)[answered_by].mean())
        tried.append((int(disagrees[answered_by, columns].sum()), cost, thresholds))
    cheapest: list[tuple[float, ...]] = []
    least = math.inf
    for _, seconds, thresholds in sorted(tried):
        if seconds < least:
            least = seconds
            cheapest.append(thresholds)
    safest = cheapest[0]
    shares = [float((row >= threshold).mean()) for row, threshold in zip(steps.confidence, safest, strict=False)]
    for part in np.linspace(0, 1, CAUTIOUS, endpoint=False)[1:]:
        yield tuple(
            float(np.quantile(row, 1 - part * share, method="higher")) if share * count >= 1 else np.inf
            for row, share in zip(steps.confidence, shares, strict=False)
        )
    yield from (tuple(map(float, thresholds)) for thresholds in cheapest)


def _combinations(confidence: np.ndarray) -> Iterator[tuple[float, ...]]:
    """Yield thresholds for each choice of at most `MOST_EARLY` steps; those of the other steps are infinite.

    `confidence` is that of all steps but the last. The more steps are chosen, the fewer thresholds each of them gets.
    """
    for chosen in range(min(MOST_EARLY, len(confidence)) + 1):
        levels = np.linspace(0, 1, int(COMBINATIONS ** (1 / max(2, chosen))))
        grids = [np.unique(np.quantile(row, levels, method="higher")) for row in confidence]
        for answering in itertools.combinations(range(len(confidence)), chosen):
            yield from itertools.product(*(grid if step in answering else [np.inf] for step, grid in enumerate(grids)))
