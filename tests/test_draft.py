"""`distill init`: a recipe for somebody's own table, without a question."""

import json
import random

import pandas as pd
import pytest
from conftest import FILLER, run

from distill.recipe.file import load_recipe


def table(count=200, labels=("spam", "ham"), words=6, seed=0):
    rng = random.Random(seed)
    return {
        "id": list(range(count)),
        "written": ["2024-05-01"] * count,
        "title": [" ".join(rng.choices(FILLER, k=2)) for _ in range(count)],
        "review": [" ".join([*rng.choices(FILLER, k=words), str(index)]) for index in range(count)],
        "category": [labels[index % len(labels)] for index in range(count)],
        "country": [("de", "fr", "it")[index % 3] for index in range(count)],
    }


def init(folder, columns, *arguments, suffix=".csv"):
    path = folder / f"mine{suffix}"
    frame = pd.DataFrame(columns)
    if suffix == ".csv":
        frame.to_csv(path, index=False)
    elif suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    return run("init", path, *arguments, "--output", folder / "recipe.yaml")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_columns_and_classes_are_found_and_the_recipe_works(tmp_path, suffix, tiny_bert):
    code, shown, errors = init(tmp_path, table(), suffix=suffix)
    assert code == 0 and shown.strip() == str(tmp_path / "recipe.yaml") and "next: distill inspect" in errors
    data = load_recipe(tmp_path / "recipe.yaml").data
    assert (data.text_column, data.label_column, data.label_names) == ("review", "category", ("ham", "spam"))
    assert data.max_tokens == 32 and data.truncation == "head"
    code, shown, _ = run("inspect", tmp_path / "recipe.yaml", "--set", f"teacher.model={tiny_bert}", "--json")
    assert code == 0 and sum(part["rows"] for part in json.loads(shown)["splits"].values()) == 200


def test_names_without_a_meaning_are_told_by_their_values(tmp_path):
    columns = table()
    renamed = {"a": columns["id"], "b": columns["review"], "c": columns["category"]}
    assert init(tmp_path, renamed)[0] == 0
    data = load_recipe(tmp_path / "recipe.yaml").data
    assert (data.text_column, data.label_column) == ("b", "c")


def test_what_cannot_be_told_is_asked_for_by_name(tmp_path):
    columns = table()
    renamed = {"b": columns["review"], "c": columns["category"], "d": columns["country"]}
    code, _, errors = init(tmp_path, renamed)
    assert code == 2 and "'c' and 'd' could all hold labels" in errors and "--label-column" in errors
    assert not (tmp_path / "recipe.yaml").exists()
    assert init(tmp_path, renamed, "--label-column", "d")[0] == 0
    two = {"b": columns["review"], "e": columns["review"][::-1], "label": columns["category"]}
    (tmp_path / "recipe.yaml").unlink()
    code, _, errors = init(tmp_path, two)
    assert code == 2 and "'b' and 'e' both hold texts" in errors
    assert init(tmp_path, two, "--text-column", "e")[0] == 0
    code, _, errors = init(tmp_path, two, "--text-column", "e")
    assert code == 2 and "is there already" in errors


def test_long_texts_rare_classes_and_numbers_shape_the_recipe(tmp_path):
    columns = table(300, labels=["1"] * 19 + ["0"], words=700)
    columns["category"][0] = "0"
    columns["category"][5] = "0"
    code, _, errors = init(tmp_path, columns)
    assert code == 0 and "rare classes: 0 (" in errors
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert (recipe.data.max_tokens, recipe.data.truncation) == (512, "head_tail")
    assert recipe.teacher.class_weights == recipe.student.class_weights == "balanced"
    assert recipe.student.training["metric_for_best_model"] == "macro_f1"
    assert 'label_map: {"0": NAME, ...} gives' in (tmp_path / "recipe.yaml").read_text()


def test_a_name_with_a_comment_in_it_is_kept(tmp_path):
    folder = tmp_path / "my  # data"
    folder.mkdir()
    assert init(folder, table())[0] == 0
    assert load_recipe(folder / "recipe.yaml").data.files.train == str(folder / "mine.csv")
    code, _, errors = init(tmp_path, table(), "--text-column", "nope")
    assert code == 2 and "--text-column: no column 'nope', only id, written" in errors


def test_pairs_are_told_by_their_names_or_named(tmp_path):
    columns = table()
    pairs = {"Premise": columns["review"], "hypothesis": columns["review"][::-1], "label": columns["category"]}
    assert init(tmp_path, pairs)[0] == 0
    assert load_recipe(tmp_path / "recipe.yaml").data.text_columns == ("Premise", "hypothesis")
    (tmp_path / "recipe.yaml").unlink()
    others = {"a": columns["review"], "b": columns["review"][::-1], "label": columns["category"]}
    assert init(tmp_path, others, "--text-column", "b", "--text-column", "a")[0] == 0
    assert load_recipe(tmp_path / "recipe.yaml").data.text_columns == ("b", "a")


@pytest.mark.parametrize("names", [("yes", "no"), ("a: b", "#c"), ("null", "true"), ("über", "{x}")])
def test_class_names_are_read_back_as_they_are(tmp_path, names):
    assert init(tmp_path, table(labels=names))[0] == 0
    assert load_recipe(tmp_path / "recipe.yaml").data.label_names == tuple(sorted(names))
