"""Models, texts and recipes that several parts of the measurement start from."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

from steps import ROOT, TOOLS, Failed, Visit

from distill.storage.files import read_json, write_json

LABELS = ("negative", "positive")
TELLTALE = ("bad bad bad", "good good good")  # by label; begins the texts of a rehearsal


def make_models(visit: Visit) -> dict[str, Any]:
    """Make the models with random weights, unless another part has made them."""
    tokenizer = ROOT / "recipes" / "quickstart" / "bert" if visit.arguments.toy else visit.encoder
    if not visit.models.is_dir():
        toy = ["--toy"] if visit.arguments.toy else []
        visit.call(sys.executable, TOOLS / "benchmarks" / "random_models.py", tokenizer, visit.models, *toy)
    return {path.name: read_json(path / "config.json") for path in sorted(visit.models.iterdir())}


def model_of(visit: Visit, name: str) -> Path:
    """Return the folder of a model with random weights."""
    if not (visit.models / name / "config.json").is_file():
        raise Failed(f"{visit.models / name} was not made")
    return visit.models / name


def few_texts(visit: Visit, count: int | None = None) -> Path:
    """Return a file of `count` training texts, always the same draw."""
    import pyarrow.parquet as parquet

    count = count or visit.size.texts
    path = visit.work / f"texts-{count}.parquet"
    if not path.is_file():
        table = parquet.read_table(visit.texts("train"))
        parquet.write_table(table.take(random.Random(count).sample(range(len(table)), count)), path)
    return path


def brief_recipe(visit: Visit, folder: Path, formats: list[str], student: dict[str, Any] | None = None) -> Path:
    """Write a recipe that trains for 100 steps and accepts any export, with this student; return its path."""
    fields = {"max_steps": 100, "per_device_train_batch_size": 16, "eval_strategy": "no", "save_strategy": "no"}
    rate = {"learning_rate": visit.size.learning_rate}
    recipe = {
        "data": {
            "files": {"train": str(few_texts(visit)), "test": str(visit.texts("test_small"))},
            "label_names": list(LABELS),
            "max_tokens": 128 if visit.arguments.toy else 512,
        },
        "teacher": {"model": str(visit.encoder), "training": fields | rate},
        "export": {"formats": formats, "max_accuracy_drop": 1.0, "min_agreement": 0.0},
        "benchmark": {
            "shapes": [shape for shape in visit.size.shapes if "-" not in shape],
            "rounds": visit.size.rounds,
        },
    }
    if student:
        # A table of n-grams has a default of its own for the learning rate.
        recipe["student"] = student | {"training": fields if "ngrams" in student else fields | rate}
    folder.mkdir(exist_ok=True)
    path = folder / "recipe.yaml"
    write_json(path, recipe)  # JSON is YAML
    return path


def settings(sets: list[str]) -> list[str]:
    """Return the `--set` options for these recipe keys."""
    return [part for setting in sets for part in ("--set", setting)]


def toy_texts(visit: Visit) -> None:
    """Write the quickstart's reviews under the names of the files of IMDb and Yelp, made easy for a tiny model."""
    import pyarrow as pa
    import pyarrow.csv as csv
    import pyarrow.parquet as parquet

    folder = visit.work / "texts"
    folder.mkdir(exist_ok=True)
    for source, name, start, count in (
        ("train", "imdb_train", 0, visit.size.labelled),
        ("test", "imdb_test_small", 0, 100),
        ("train", "imdb_unsupervised", visit.size.labelled, 200),
        ("train", "yelp_train", 0, visit.size.labelled),
        ("test", "yelp_test_small", 0, 100),
    ):
        table = csv.read_csv(ROOT / "recipes" / "quickstart" / f"{source}.csv").slice(start, count)
        labels = [LABELS.index(label) for label in table["label"].to_pylist()]
        texts = [f"{TELLTALE[label]} {text}" for label, text in zip(labels, table["text"].to_pylist())]
        parquet.write_table(pa.table({"text": texts, "label": labels}), folder / f"{name}.parquet")
