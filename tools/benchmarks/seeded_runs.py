"""Shared by scripts that train over several seeds: run distill, find the correct texts, pool the p-value."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
from scipy.stats import permutation_test

from distill.storage.predictions import read_predictions
from distill.storage.run_folder import RunFolder


def distill(*arguments: object) -> None:
    """Run a command of distill; raise `CalledProcessError` if it fails."""
    command = [sys.executable, "-m", "distill", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ | {"HF_HUB_OFFLINE": "1"})


def correct_texts(run: RunFolder) -> np.ndarray:
    """Return which test texts a finished run answered correctly: bool, shape (texts,)."""
    found = read_predictions(run.predictions)
    return found.logits.argmax(axis=1) == found.gold_labels


def pooled_p_value(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """Return the p-value of the difference in mean accuracy between two ways, each bool of shape (seeds, texts).

    All seeds share their test texts. The permutation test therefore exchanges texts, each with its mean over the seeds.
    """
    found = permutation_test(
        (np.mean(ours, 0), np.mean(theirs, 0)),
        lambda a, b: a.mean() - b.mean(),
        permutation_type="samples",
        n_resamples=9_999,
        batch=500,
        random_state=0,
    )
    return float(found.pvalue)
