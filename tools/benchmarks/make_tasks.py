"""Make tables for other tasks from reviews with stars: pairs of texts, and texts with several labels.

usage: python3 tools/benchmarks/make_tasks.py TRAIN.parquet TEST.parquet FOLDER

The files need a column text and a column label, the number of stars from 0. FOLDER gets:

- pairs_train.parquet and pairs_test.parquet: two reviews of different stars (first, second), and which of them has more
  (label: first or second);
- several_train.parquet and several_test.parquet: the beginnings of two reviews in one text, and the opinions in it
  (label: a list of low for 1 or 2 stars, middle for 3, high for 4 or 5).

Reviews meet at random: each test review once, each train review twice.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

OPINIONS = ("low", "low", "middle", "high", "high")
WORDS = 50  # of each review of a text with several labels, so that 128 tokens hold most of both


def main() -> None:
    """Write the four tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for split, path, rounds in (("train", arguments.train, 2), ("test", arguments.test, 1)):
        met = pd.concat([meetings(pd.read_parquet(path), seed) for seed in range(rounds)], ignore_index=True)
        for name, rows in (("pairs", pairs(met)), ("several", several(met))):
            rows.to_parquet(arguments.folder / f"{name}_{split}.parquet", index=False)
            print(f"{name}_{split}: {len(rows)} rows")


def meetings(reviews: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return each review beside another: columns first, first_stars, second, second_stars."""
    order = np.random.default_rng(seed).permutation(len(reviews))[: len(reviews) // 2 * 2]
    left, right = (reviews.iloc[half].reset_index(drop=True) for half in np.split(order, 2))
    return pd.DataFrame(
        {"first": left["text"], "first_stars": left["label"], "second": right["text"], "second_stars": right["label"]}
    )


def pairs(met: pd.DataFrame) -> pd.DataFrame:
    """Return the pairs of different stars, and which text has more."""
    rows = met[met["first_stars"] != met["second_stars"]]
    label = np.where(rows["first_stars"] > rows["second_stars"], "first", "second")
    return rows[["first", "second"]].assign(label=label)


def several(met: pd.DataFrame) -> pd.DataFrame:
    """Return one text of both reviews' beginnings, and the opinions in it."""
    beginnings = [met[name].str.split().str[:WORDS].str.join(" ") for name in ("first", "second")]
    stars = met[["first_stars", "second_stars"]].to_numpy()
    opinions = [sorted({OPINIONS[one] for one in row}) for row in stars]
    return pd.DataFrame({"text": beginnings[0] + " " + beginnings[1], "label": opinions})


if __name__ == "__main__":
    main()
