"""What the scripts that train over several seeds share: running distill, who was right on test, one p for all seeds."""

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
    """Run a command of distill; stop where it stops."""
    command = [sys.executable, "-m", "distill", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ | {"HF_HUB_OFFLINE": "1"})


def correct_texts(run: RunFolder) -> np.ndarray:
    """Return which of the test texts a finished run was right on, bool, shape (texts,)."""
    _, gold_labels, logits = read_predictions(run.predictions)
    return logits.argmax(axis=1) == gold_labels


def pooled_p_value(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """Return the p-value of the mean accuracy over seeds of two ways, each (seeds, texts) of right and wrong.

    The seeds share their test texts, so it is texts, with their mean over seeds, that are exchanged.
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
