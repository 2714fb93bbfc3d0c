"""Texts with several labels, or none: how tables say so, what is refused, and how the splits keep them."""

import csv
import json
import random

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import FILLER, make_tokenizer, run
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.data import splits as splits_module
from distill.data.encoding import Truncation
from distill.data.inspection import as_text, concerns, inspect, look_at, row_text
from distill.data.splits import gold_labels_of, label_counts, load_splits
from distill.errors import DataError, RecipeError
from distill.recipe.file import load_recipe
from distill.recipe.labels import label_key
from distill.recipe.schema import Data, Files

NAMES = ("action", "comedy", "drama")
# Sets of labels in which each label is on some texts and not on others; the sixth text has none.
SETS = [("action",), ("comedy", "drama"), ("drama",), ("action", "drama"), ("comedy",), (), ("action", "comedy")] * 6


def data(train, test, **settings):
    return Data(files=Files(train=str(train), test=str(test)), task="multi_label", **settings)


def texts_of(count, word="text"):
    return [f"{word} {index} of a film" for index in range(count)]


def write(path, columns):
    """A table in the format that the suffix says; lists in csv are JSON."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            cells = [[json.dumps(one) if isinstance(one, list) else one for one in row.values()] for row in rows]
            csv.writer(file).writerows([list(columns), *cells])
    elif path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, pa.table(columns).schema) as writer:
            writer.write_table(pa.table(columns))
    else:
        pq.write_table(pa.table(columns), path)
    return path


def tables(folder, columns_of, suffix=".csv"):
    """A train and a test file with other texts and the same labels, which `columns_of` writes for `SETS`."""
    columns = columns_of(SETS)
    return [write(folder / f"{word}{suffix}", {"text": texts_of(len(SETS), word)} | columns) for word in ("a", "b")]


def matrix(sets, names=NAMES):
    return np.array([[name in one for name in names] for one in sets], np.uint8)


def as_lists(sets):
    return {"label": [list(one) for one in sets]}


def as_joined(sets, separator=" ; "):
    return {"label": [separator.join(one) for one in sets]}


def as_marks(sets, yes=1, no=0):
    return {name: [yes if name in one else no for one in sets] for name in NAMES}


MARKED = {"label_column": NAMES}
JOINED = {"label_separator": ";"}
WAYS = {
    "lists": (as_lists, {}),
    "joined": (as_joined, JOINED),
    "numbers": (as_marks, MARKED),
    "truth values": (lambda sets: as_marks(sets, True, False), MARKED),
    "floats": (lambda sets: as_marks(sets, 1.0, 0.0), MARKED),
    "words": (lambda sets: as_marks(sets, "TRUE", " false"), MARKED),
    "digits": (lambda sets: as_marks(sets, "1", "0"), MARKED),
}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".arrow"])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_labels_gives_the_same_matrix(tmp_path, way, suffix):
    columns_of, settings = WAYS[way]
    splits = load_splits(data(*tables(tmp_path, columns_of, suffix), **settings))
    assert (splits.task, splits.label_names, splits.notes, splits.unread) == ("multi_label", NAMES, (), ())
    gold_labels = gold_labels_of(splits.test)
    assert gold_labels.dtype == np.uint8 and (gold_labels == matrix(SETS)).all()
    assert splits.test["label"][:2] == [[1, 0, 0], [0, 1, 1]]
    assert label_counts(splits.test, 3).tolist() == matrix(SETS).sum(0).tolist()


label = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cf", "Z"], exclude_characters=";"), min_size=1)
names = st.lists(label.map(lambda name: f"{name}x"), min_size=2, max_size=5, unique_by=label_key)


@settings(max_examples=10, deadline=None)
@given(names, st.data())
def test_any_labels_are_the_same_as_lists_joined_and_as_columns(tmp_path_factory, names, drawn):
    folder, names = tmp_path_factory.mktemp("any"), sorted(names)
    sets = drawn.draw(st.lists(st.lists(st.sampled_from(names), unique=True), min_size=1, max_size=8))
    sets += [[name] for name in names] + [names[:2]]  # something is joined
    expected, columns = matrix(sets, names), [f"is {name}" for name in names]
    ways = [
        ({"label": sets}, {}),
        ({"label": [" ;".join(one) for one in sets]}, JOINED),
        (dict(zip(columns, matrix(sets, names).T.tolist(), strict=True)),
         {"label_column": tuple(columns), "label_map": dict(zip(columns, names, strict=True))}),
    ]  # fmt: skip
    for written, more in ways:
        suffix = drawn.draw(st.sampled_from([".csv", ".jsonl", ".parquet"]))
        files = {
            split: str(write(folder / f"{split}{suffix}", {"text": texts_of(len(sets), split)} | written))
            for split in ("train", "validation", "test")
        }
        splits = load_splits(Data(files=Files(**files), task="multi_label", label_names=tuple(names), **more))
        assert splits.label_names == tuple(names) and (gold_labels_of(splits.test) == expected).all()


def typed(path, sets, kind):
    """A file whose type names the classes, as Hub data sets do."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": kind(datasets.ClassLabel(names=list(NAMES)))}
    )
    rows = {"text": texts_of(len(sets), path.stem), "label": [[NAMES.index(name) for name in one] for one in sets]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return path


@pytest.mark.parametrize("kind", [datasets.List, datasets.LargeList])
def test_lists_whose_type_names_the_classes_go_by_name(tmp_path, kind):
    files = [typed(tmp_path / f"{word}.parquet", SETS, kind) for word in ("train", "test")]
    splits = load_splits(data(*files, label_names=("drama", "action", "comedy")))
    assert (gold_labels_of(splits.test) == matrix(SETS, ("drama", "action", "comedy"))).all()
    folder = load_splits(Data(dataset=str(tmp_path), task="multi_label"))
    assert folder.label_names == NAMES and (gold_labels_of(folder.test) == matrix(SETS)).all()


def test_numbers_are_indices_into_names_as_they_are_with_one_label(tmp_path):
    files = tables(tmp_path, lambda sets: {"label": [[NAMES.index(name) for name in one] for one in sets]}, ".jsonl")
    assert load_splits(data(*files)).label_names == ("0", "1", "2")
    splits = load_splits(data(*files, label_names=NAMES))
    assert (gold_labels_of(splits.test) == matrix(SETS)).all()


def test_a_map_renames_labels_and_joins_two_to_one(tmp_path):
    label_map = {"Action": "exciting", "drama": "exciting"}
    expected = np.stack([matrix(SETS)[:, 1], matrix(SETS)[:, [0, 2]].max(axis=1)], axis=1)
    for way, names in (("lists", ("comedy", "exciting")), ("numbers", ("exciting", "comedy"))):
        columns_of, settings = WAYS[way]
        splits = load_splits(data(*tables(tmp_path, columns_of), label_map=label_map, **settings))
        assert splits.label_names == names and not splits.notes
        order = [names.index(name) for name in ("comedy", "exciting")]
        assert (gold_labels_of(splits.test)[:, order] == expected).all()


def test_what_is_odd_but_clear_is_read_and_noted(tmp_path):
    twice = tables(tmp_path, lambda sets: {"label": [[*one, *one[:1]] for one in sets]})
    splits = load_splits(data(*twice))
    assert (gold_labels_of(splits.test) == matrix(SETS)).all()
    assert any(note.endswith("a.csv: 36 texts have a label twice; it counts once") for note in splits.notes)
    alone = tables(tmp_path, lambda sets: {"label": [one[0] if one else "" for one in sets]})
    splits = load_splits(data(*alone, label_separator="|"))
    assert any("'|' joins no labels there: no text has two" in note for note in splits.notes)
    constant = tables(tmp_path, lambda sets: {"label": [["film", *one] for one in sets]})
    splits = load_splits(data(*constant))
    assert any("every training text has the label film" in note for note in splits.notes)
    cased = tables(tmp_path, lambda sets: {"label": [list(map(str.upper, one)) for one in sets]})
    splits = load_splits(data(*cased, label_names=NAMES))
    assert any("labels are not spelled as their class" in note for note in splits.notes)


FINE = [list(one) for one in SETS]


def spoiled(value, row=3, sets=FINE):
    return {"label": [*sets[:row], value, *sets[row + 1 :]]}


def spoiled_marks(value, row=3):
    marks = as_marks(SETS)
    return marks | {"comedy": [*marks["comedy"][:row], value, *marks["comedy"][row + 1 :]]}


STRINGS = as_joined(SETS, ";")["label"]
# Name: the suffix, the columns, what the recipe says, and the place and the words of the error.
REFUSED = {
    "Python's list in a csv": (".csv", spoiled("['a', 'b']"), {}, "line 5: \"['a', 'b']\" is not a JSON list"),
    "an array as numpy prints it": (".csv", spoiled("[1 2]"), {}, "line 5: '[1 2]' is not a JSON list"),
    "a text that is no list": (".jsonl", spoiled("action"), {}, "line 4: label 'action' is not a list; write a JSON"),
    "joined without a separator": (".csv", {"label": STRINGS}, {}, "line 2: label 'action' is not a list"),
    "an empty cell without a separator": (".csv", spoiled(""), {}, "line 5: the labels are missing; write []"),
    "null": (".jsonl", spoiled(None), {}, "line 4: the labels are missing; write [] if a text has no label"),
    "null in arrow": (".parquet", spoiled(None), {}, "row 3: the list of labels is missing (1 such row); write []"),
    "null in a list": (".jsonl", spoiled(["drama", None]), {}, "line 4: '[\"drama\", null]' has an empty label"),
    "null in a list in arrow": (".parquet", spoiled(["drama", None]), {}, "row 3: ['drama', None] has an empty label"),
    "a blank label": (".parquet", spoiled(["drama", " \u200b"]), {}, "row 3: ['drama', ' \\u200b'] has an empty label"),
    "a list in a list": (".jsonl", spoiled([["drama"]]), {}, "line 4: '[[\"drama\"]]' holds a list, not a number"),
    "lists in lists": (".parquet", {"label": [[one] for one in FINE]}, {}, "'label' holds list<item: list<"),
    "an object": (".jsonl", spoiled({"drama": 1}), {}, "line 4: label '{\"drama\": 1}' is not a list"),
    "numbers": (".parquet", {"label": [1.5] * 42}, {}, "data.label_column: 'label' holds double, not lists"),
    "half a character": (".jsonl", spoiled(["\ud800"]), {}, "line 4: '[\"\\\\ud800\"]' holds half a character"),
    "0 and 1 for each label": (".jsonl", {"label": matrix(SETS).tolist()}, {}, "line 1: 'label' holds ['1', '0', '0']"),
    "an empty label": (".csv", spoiled("drama;;action", sets=STRINGS), JOINED, "line 5: 'drama;;action' has an empty"),
    "a separator at the end": (".csv", spoiled("drama;", sets=STRINGS), JOINED, "line 5: 'drama;' has an empty label"),
    "a list and a separator": (".csv", {"label": FINE}, JOINED, "line 2: '[\"action\"]' looks like a list, but"),
    "Python's list and a comma": (
        ".csv", {"label": list(map(str, FINE))}, {"label_separator": ","}, "line 2: \"['action']\" looks like a list",
    ),
    "lists and a separator": (".arrow", {"label": FINE}, JOINED, "data.label_separator: ';', but 'label' holds lists"),
    "another separator": (
        ".csv", {"label": STRINGS}, {"label_separator": "|"}, "'|' is in no label, but 'action;comedy' looks like",
    ),
    "no labels at all": (".jsonl", {"label": [[]] * 42}, {}, "a.jsonl: no text has a label"),
    "all labels everywhere": (".csv", as_marks([NAMES] * 42), MARKED, "every training text has all 3 labels"),
    "one label only": (".csv", {"label": ["drama", ""] * 21}, JOINED, "one class only ('drama')"),
    "a half": (".csv", spoiled_marks(0.5), MARKED, "line 5: 'comedy' holds '0.5', but a column of label_column wants"),
    "two": (".parquet", spoiled_marks(2), MARKED, "row 3: 'comedy' holds 2, but a column of label_column wants 0 or 1"),
    "minus one": (".jsonl", spoiled_marks(-1), MARKED, "line 4: 'comedy' holds '-1', but"),
    "an empty mark": (".csv", spoiled_marks(""), MARKED, "line 5: 'comedy' is empty, but"),
    "a null mark": (".parquet", spoiled_marks(None), MARKED, "row 3: 'comedy' is empty, but"),
    "not a number": (".parquet", spoiled_marks(float("nan")), MARKED, "row 3: 'comedy' is empty, but"),
    "a word": (".csv", spoiled_marks("yes"), MARKED, "line 5: 'comedy' holds 'yes', but"),
    "a list as a mark": (".parquet", dict.fromkeys(NAMES, FINE), MARKED, "'action' holds list<item: string>, not 0"),
    "a column that is missing": (".csv", {"action": [0] * 42, "drama": [1] * 42}, MARKED, "no column 'comedy', only"),
    "a label without a text": (
        ".csv", as_marks([("action", "drama")] * 42), MARKED, "no training text of class 'comedy'",
    ),
    "too few texts": (".csv", {"label": FINE[:3] + [[]] * 39}, {"train_samples": 4}, "no training text of"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_labels_that_could_mean_two_things_are_one_line(tmp_path, name):
    suffix, columns, settings, expected = REFUSED[name]
    test = write(
        tmp_path / "b.jsonl", {"text": texts_of(42, "b")} | (as_marks(SETS) if settings == MARKED else as_lists(SETS))
    )
    if "label_separator" in settings:
        test = write(tmp_path / "b.csv", {"text": texts_of(42, "b"), "label": STRINGS})
    with pytest.raises(DataError) as caught:
        load_splits(data(write(tmp_path / f"a{suffix}", {"text": texts_of(42)} | columns), test, **settings))
    message = str(caught.value)
    assert expected in message and "a." in message and "\n" not in message and len(message) < 500


def test_a_label_that_train_does_not_have_is_refused(tmp_path):
    train, test = tables(tmp_path, as_lists)
    write(test, {"text": texts_of(42, "b")} | spoiled(["drama", "horror"]))
    with pytest.raises(
        DataError, match=r"b.csv: line 5: label 'horror' is not one of 3 classes: action, comedy, drama"
    ):
        load_splits(data(train, test))


def test_marks_whose_type_turns_them_round_are_refused(tmp_path):
    for names, word in ((["no", "yes"], "train"), (["yes", "no"], "test")):
        features = datasets.Features(
            {"text": datasets.Value("string"), **{name: datasets.ClassLabel(names=names) for name in NAMES}}
        )
        rows = {"text": texts_of(42, word)} | as_marks(SETS)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{word}.parquet")
    with pytest.raises(
        DataError, match=r"test.parquet: data.label_column: the type of 'action' calls its values yes, no"
    ):
        load_splits(data(tmp_path / "train.parquet", tmp_path / "test.parquet", **MARKED))


@pytest.mark.parametrize(
    ("suffix", "columns", "expected"),
    [
        (
            ".jsonl",
            as_lists(SETS),
            "line 1: 'label' holds a list, not a number or a name; data.task: multi_label reads",
        ),
        (".parquet", as_lists(SETS), "holds list<item: string>, not numbers or names; data.task: multi_label reads"),
    ],
)
def test_lists_where_a_text_has_one_label_name_the_task(tmp_path, suffix, columns, expected):
    train = write(tmp_path / f"a{suffix}", {"text": texts_of(42)} | columns)
    with pytest.raises(DataError, match="multi_label") as caught:
        load_splits(Data(files=Files(train=str(train))))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"task": "single_label", "label_column": ["a", "b"]}, "label_column: a list of columns, but a text has one"),
        ({"task": "single_label", "label_separator": ";"}, "label_separator: joins several labels, but a text has one"),
        ({"label_column": ["a", "b"], "label_separator": ";"}, "label_separator: joins labels in one column, but"),
        ({"label_column": ["a"]}, "label_column: a list wants two columns or more, got ['a']"),
        ({"label_column": []}, "label_column: a list wants two columns or more, got []"),
        ({"label_column": ["a", "b", "a"]}, "one column twice: text, a, b, a"),
        ({"label_column": ["a", "A "]}, "label_column: 'a' is there twice, apart from case and white space"),
        ({"label_column": ["text", "b"]}, "one column twice: text, text, b"),
        ({"label_column": ["a", "b"], "label_names": ["a", "c"]}, "label_names: a, c, but the columns of label_column"),
        (
            {"label_column": ["a", "b"], "label_map": {"a": "x", "b": "x"}},
            "makes all columns of label_column one label",
        ),
        ({"label_separator": ""}, "label_separator: string should have at least 1 character"),
        ({"label_column": ["a", 1]}, "label_column: wants a column, or with task: multi_label a list of columns; got"),
        ({"label_column": None}, "label_column: wants a column, or with task: multi_label a list of columns; got None"),
        ({"task": "several"}, "task: input should be 'single_label' or 'multi_label', got 'several'"),
    ],
)
def test_a_recipe_whose_labels_make_no_sense_is_refused(tmp_path, settings, expected):
    recipe = {"data": {"files": {"train": "a.csv"}, "task": "multi_label", **settings}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "recipe.yaml")
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_loss_for_one_class_is_refused_and_an_order_of_names_is_not(tmp_path):
    recipe = {
        "data": {
            "files": {"train": "a.csv"},
            "task": "multi_label",
            "label_column": ["a", "b"],
            "label_names": ["B", "a"],
        },
        "student": {"model": "m", "loss": {"soft": "decoupled"}},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    with pytest.raises(RecipeError, match=r"student.loss.soft: decoupled, but it is for texts of one class"):
        load_recipe(tmp_path / "recipe.yaml")
    found = load_recipe(tmp_path / "recipe.yaml", ["student.loss.soft=logit_mse"])
    assert found.data.has_several_labels and found.data.label_columns == ("a", "b")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sets(st.sampled_from("abcd")), min_size=1, max_size=30), st.integers(0, 99), st.integers(0, 20))
def test_rows_taken_from_train_leave_every_label_there(sets, seed, size):
    gold_labels = matrix(sets, "abcd")
    kept, taken = splits_module._stratified(gold_labels, min(size, len(sets)), seed)
    assert sorted([*kept, *taken]) == list(range(len(sets))) and len(taken) <= size
    assert (gold_labels[kept].any(axis=0) == gold_labels.any(axis=0)).all()
    assert len(taken) >= min(size, len(sets)) - 4


def test_a_label_of_few_texts_stays_in_train_and_is_noted(tmp_path):
    sets = [*SETS, ("western",), ("western", "drama"), ("horror", "drama")]
    train = write(tmp_path / "a.jsonl", {"text": texts_of(len(sets))} | as_lists(sets))
    for seed in range(5):
        splits = load_splits(Data(files=Files(train=str(train)), task="multi_label", seed=seed, test_fraction=0.3))
        parts = [splits.train, splits.validation, splits.test]
        assert gold_labels_of(splits.train).any(axis=0).all()
        assert any(note.startswith("test: has no text of horror") for note in splits.notes)
        assert sum(map(len, parts)) == len(sets)
        for part in parts:
            expected = matrix([sets[int(one[6:])] for one in part["example_id"][:]], splits.label_names)
            assert (gold_labels_of(part) == expected).all()
    with pytest.raises(DataError, match="leaves no text for test"):
        load_splits(Data(files=Files(train=str(train)), task="multi_label", test_fraction=0.001))


def test_a_part_has_the_shares_of_the_rare_labels_and_of_texts_without_one(tmp_path):
    sets = [("rare", "common") if index % 10 == 0 else ("common",) if index % 3 else () for index in range(300)]
    train = write(tmp_path / "a.jsonl", {"text": texts_of(300)} | as_lists(sets))
    files = Files(
        train=str(train), test=str(write(tmp_path / "b.jsonl", {"text": texts_of(9, "b")} | as_lists(sets[:9])))
    )
    first, again, other = (
        load_splits(Data(files=files, task="multi_label", validation_fraction=0.2, seed=seed)) for seed in (1, 1, 2)
    )
    gold_labels = gold_labels_of(first.validation)
    assert len(gold_labels) == 60 and abs(gold_labels[:, 1].sum() - 6) <= 1
    assert abs((~gold_labels.any(axis=1)).sum() - 18) <= 1
    assert first.fingerprints == again.fingerprints
    assert first.validation["example_id"][:] != other.validation["example_id"][:]


def test_fingerprints_follow_the_labels_and_not_how_they_are_written(tmp_path):
    prints = {way: load_splits(data(*tables(tmp_path, of), **more)).fingerprints for way, (of, more) in WAYS.items()}
    assert len({tuple(one.items()) for one in prints.values()}) == 1
    write(tmp_path / "b.csv", {"text": texts_of(42, "b")} | spoiled(["comedy"]))
    changed = load_splits(
        data(write(tmp_path / "a.csv", {"text": texts_of(42, "a")} | as_lists(SETS)), tmp_path / "b.csv")
    )
    assert changed.fingerprints["test"] != prints["lists"]["test"]
    assert changed.fingerprints["train"] == prints["lists"]["train"]


def test_gold_labels_are_those_of_the_rows_however_they_are_drawn(tmp_path):
    rows = load_splits(data(*tables(tmp_path, as_lists))).test
    rng = random.Random(0)
    for _ in range(5):
        which = rng.sample(range(len(rows)), 7)
        drawn = rows.select(which)
        assert (gold_labels_of(drawn) == matrix(SETS)[which]).all()
        assert (gold_labels_of(drawn.select(range(2, 5))) == matrix(SETS)[which[2:5]]).all()
    assert (gold_labels_of(rows.select(range(3, 9))) == matrix(SETS)[3:9]).all()
    assert gold_labels_of(rows.select([])).shape == (0, 3)
    rows.shuffle(seed=3).save_to_disk(tmp_path / "kept")
    kept = datasets.Dataset.load_from_disk(str(tmp_path / "kept"))
    assert (gold_labels_of(kept) == gold_labels_of(rows.shuffle(seed=3))).all()
    one = datasets.Dataset.from_dict({"label": [2, 0, 1]}).cast_column("label", datasets.ClassLabel(names=list(NAMES)))
    assert gold_labels_of(one.select([2, 0])).tolist() == [1, 2] and gold_labels_of(one).dtype == np.int64


def test_inspect_counts_each_label_texts_without_one_and_other_labels_of_the_same_text(tmp_path):
    train, test = tables(tmp_path, as_lists)
    texts = texts_of(42, "a")
    texts[0] = texts[1].upper()
    write(train, {"text": texts} | as_lists(SETS))
    splits = load_splits(data(train, test, validation_fraction=0.05))
    found = inspect(splits, make_tokenizer(FILLER), Truncation(16), rows=2, seed=0)
    part = found["splits"]["test"]
    assert part["labels"] == dict(zip(NAMES, matrix(SETS).sum(0).tolist(), strict=True))
    assert part["without_labels"] == 6 and part["labels_per_text"] == pytest.approx(9 / 7)
    assert found["task"] == "multi_label" and not found["joined_labels"]
    assert found["contradictions"]["shown"][0]["labels"] in (["action", "comedy, drama"], ["comedy, drama", "action"])
    shown = as_text(found)
    assert "(no label)" in shown and "labels a text" in shown and "1.29" in shown
    said = concerns(found)
    assert any("fewer than 20 train texts have the label 'action' (" in one and "balanced" in one for one in said)
    assert any("1 train texts have other labels where they are repeated" in one for one in said)
    row = look_at("test/1", splits, make_tokenizer(FILLER), Truncation(16))
    assert row["label"] == "comedy, drama" and "test/1: in test, label comedy, drama" in row_text(row)
    assert look_at("test/5", splits, make_tokenizer(FILLER), Truncation(16))["label"] == "(no label)"


def drafted(folder, columns, suffix=".csv", *arguments):
    write(folder / f"mine{suffix}", columns)
    code, _, errors = run("init", folder / f"mine{suffix}", *arguments, "--output", folder / "recipe.yaml")
    assert code == 0, errors
    return load_recipe(folder / "recipe.yaml").data, (folder / "recipe.yaml").read_text(), errors


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("columns_of", "column", "separator", "reason"),
    [
        (lambda sets: {"genre list": as_lists(sets)["label"]}, "genre list", None, "'genre list' holds lists"),
        (
            lambda sets: as_joined(sets, ";"),
            "label",
            ";",
            "'label' joins them with ';'; if 'comedy;drama' is one label",
        ),
        (lambda sets: as_joined(sets, ", "), "label", ",", "'label' joins them with ','; if"),
        (as_marks, NAMES, None, "3 columns hold 0 and 1; remove columns that are no labels"),
    ],
)
def test_init_sees_how_several_labels_are_written(tmp_path, suffix, columns_of, column, separator, reason):
    texts = [" ".join(random.Random(index).choices(FILLER, k=9)) + f" {index}" for index in range(len(SETS) * 5)]
    found, text, errors = drafted(tmp_path, {"review": texts} | columns_of(SETS * 5), suffix)
    assert (found.task, found.label_column, found.label_separator) == ("multi_label", column, separator)
    assert found.label_names == NAMES and found.text_column == "review"
    assert f"a text may have several labels: {reason}" in errors and reason in text
    assert load_splits(found).task == "multi_label"


def test_init_asks_if_one_name_might_be_several_labels(tmp_path):
    columns = {"text": texts_of(60), "label": ["food", "drink", "food & drink"] * 20}
    found, text, errors = drafted(tmp_path, columns)
    assert found.task == "single_label" and len(found.label_names) == 3
    assert "'food & drink' looks like several labels in one; if it is, set task: multi_label" in errors
    assert 'label_separator: "&"' in text


def test_pandas_tables_are_read_as_they_were(tmp_path):
    frame = pd.DataFrame({"text": texts_of(42)} | as_marks(SETS, True, False))
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.assign(text=texts_of(42, "b")).to_parquet(tmp_path / "b.parquet")
    splits = load_splits(data(tmp_path / "a.csv", tmp_path / "b.parquet", **MARKED))
    assert (gold_labels_of(splits.test) == matrix(SETS)).all()
