"""Tables that used to be read wrongly without a word: each is read as it was written, or refused with its line."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import run

from distill.data import sources
from distill.data.splits import load_splits
from distill.data.texts import read_texts
from distill.errors import DataError
from distill.recipe.labels import joined, names_of
from distill.recipe.schema import Data, Files

SIDES = ["good", "bad"]


def words(name, count=40):
    """Texts without commas and quotes, of which each second one is bad."""
    return [(f"{name} {index} is {SIDES[index % 2]}", SIDES[index % 2]) for index in range(count)]


def table(folder, name, line, *, head="text,label", suffix=".csv", encoding="utf-8", end="\n"):
    """A file of a header and what `line` makes of each text and label, numbered from 0."""
    rows = [line(text, label, index) for index, (text, label) in enumerate(words(name))]
    path = folder / f"{name}{suffix}"
    path.write_bytes((end.join([head, *rows]) + end).encode(encoding))
    return path


def read(folder, line, label_names=None, **kind):
    """What distill makes of such a file: the class name of each text in it, and the splits."""
    train, test = (table(folder, name, line, **kind) for name in ("train", "test"))
    splits = load_splits(Data(files=Files(train=str(train), test=str(test)), label_names=label_names))
    found = {
        row["text"]: splits.label_names[row["label"]] for rows in (splits.train, splits.validation) for row in rows
    }
    return found, splits


def flags(text, label, index):
    return f"{text},{'TRUE' if label == 'good' else 'FALSE'}"


def plain(text, label, index):
    return f"{text},{label}"


# How the rows are written, the recipe's names, and what the classes of good and bad texts are called then.
READ = {
    "booleans in the recipe's order": (flags, ("TRUE", "FALSE"), {}, ("TRUE", "FALSE")),
    "booleans, the other way round": (flags, ("FALSE", "TRUE"), {}, ("TRUE", "FALSE")),
    "booleans in other case": (flags, ("true", "false"), {}, ("true", "false")),
    "booleans without names": (flags, None, {}, ("TRUE", "FALSE")),
    "leading zeros": (lambda t, c, i: f"{t},{'007' if c == 'good' else '012'}", None, {}, ("007", "012")),
    "whole numbers": (lambda t, c, i: f"{t},{'7' if c == 'good' else '12'}", None, {}, ("7", "12")),
    "what pandas makes of them": (lambda t, c, i: f"{t},{'1.0' if c == 'good' else '0.0'}", None, {}, ("1", "0")),
    "indices": (lambda t, c, i: f"{t},{'1' if c == 'good' else '0'}", ("no", "yes"), {}, ("yes", "no")),
    "numbers with fractions that are named": (
        lambda t, c, i: f"{t},{'1.5' if c == 'good' else '2.0'}", ("1.5", "2.0"), {}, ("1.5", "2.0"),
    ),
    "white space": (lambda t, c, i: f"{t},{c}{' ' * (i % 5 == 0)}", None, {}, ("good", "bad")),
    "a space that does not break": (lambda t, c, i: f"{t},{c}{chr(160) * (i % 5 == 0)}", None, {}, ("good", "bad")),
    "case that the recipe settles": (
        lambda t, c, i: f"{t},{c.title() if i % 3 == 0 else c}", ("good", "bad"), {}, ("good", "bad"),
    ),
    "a comma too many": (lambda t, c, i: f"{t},{c},", None, {}, ("good", "bad")),
    "commas too many": (lambda t, c, i: f"{t},{c},,, ", None, {}, ("good", "bad")),
    "a column without a name": (lambda t, c, i: f"{i},{t},{c}", None, {"head": ",text,label"}, ("good", "bad")),
    "line ends of Windows": (plain, None, {"end": "\r\n"}, ("good", "bad")),
    "line ends of an old Mac": (plain, None, {"end": "\r"}, ("good", "bad")),
    "a comma at the end of the header": (plain, None, {"head": "text,label,"}, ("good", "bad")),
    "numbers that are codes": (lambda t, c, i: f"{t},{'1_0' if c == 'good' else '2_1'}", None, {}, ("1_0", "2_1")),
    "numbers of many digits": (
        lambda t, c, i: f"{t},{'9' * 20 if c == 'good' else '8' * 20}", None, {}, ("9" * 20, "8" * 20),
    ),
    "blank lines": (lambda t, c, i: f"{t},{c}\n" + "  \n" * (i % 3), None, {}, ("good", "bad")),
    "a byte-order mark": (plain, None, {"encoding": "utf-8-sig"}, ("good", "bad")),
    "tabs": (lambda t, c, i: f"{t}\t{c}", None, {"head": "text\tlabel", "suffix": ".tsv"}, ("good", "bad")),
    "a tsv file quoted as csv": (
        lambda t, c, i: f'"{t}"\t"{c}"', None, {"head": "text\tlabel", "suffix": ".tsv"}, ("good", "bad"),
    ),
    "json of several types": (
        lambda t, c, i: json.dumps({"text": t, "label": 1 if c == "good" else "none"}), None,
        {"head": "", "suffix": ".jsonl"}, ("1", "none"),
    ),
    "json of numbers, some of them text": (
        lambda t, c, i: json.dumps({"text": t, "label": [1, "1", 1.0][i % 3] if c == "good" else 0}), ("no", "yes"),
        {"head": "", "suffix": ".jsonl"}, ("yes", "no"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_labels_are_read_as_written(name, tmp_path):
    line, label_names, kind, (good, bad) = READ[name]
    found, splits = read(tmp_path, line, label_names, **kind)
    assert found == {text: good if label == "good" else bad for text, label in words("train")}
    assert label_names is None or splits.label_names == label_names
    merged = name.startswith(("white", "a space", "case", "booleans in other"))
    assert len(splits.notes) == (2 if merged else 0), splits.notes  # of train and of test


def test_labels_taken_for_their_class_are_counted_in_a_note(tmp_path):
    _, splits = read(tmp_path, lambda t, c, i: f"{t},{c}{' ' * (i % 5 == 0)}")
    assert splits.notes[0] == (
        f"{tmp_path / 'train.csv'}: 8 labels are not spelled as their class and were matched to it, such as "
        "'good ' for 'good'"
    )


@pytest.mark.parametrize("at", [0, 20, 39])
def test_a_word_among_numbers_means_the_same_wherever_it_stands(at, tmp_path):
    def line(text, label, index):
        return f"{text},{'neutral' if index in (at, at ^ 1) else SIDES.index(label)}"

    found, splits = read(tmp_path, line)
    assert splits.label_names == ("0", "1", "neutral") and list(found.values()).count("neutral") == 2
    with pytest.raises(DataError, match=rf"line {min(at, at ^ 1) + 2}: label 'neutral' is not one of 2 classes: a, b"):
        read(tmp_path, line, ("a", "b"))


def test_a_class_whose_only_text_leaks_is_named_with_its_line(tmp_path):
    with pytest.raises(DataError, match=r"train\.csv: line 9: no training text of class 'odd' is left: its texts are"):
        read(tmp_path, lambda t, c, i: "it is so so,odd" if i == 7 else f"{t},{c}")


def quoted(text, label, index):
    return f"{chr(34) * (index in (10, 20))}{text}\t{label}"


# How the rows are written, the recipe's names, and the one line.
REFUSED = {
    "words that are no names": (flags, ("yes", "no"), {}, "line 2: label 'TRUE' is not one of 2 classes: yes, no"),
    "zeros that make no number": (
        lambda t, c, i: f"{t},{'00' if c == 'good' else '01'}", ("bad", "good"), {},
        "line 2: label '00' is not one of 2 classes",
    ),
    "case that may be meant": (
        lambda t, c, i: f"{t},{'Good' if i == 30 else c}", None, {},
        "line 2: labels 'Good' and 'good' differ only in case; write them alike",
    ),
    "several labels in one": (
        lambda t, c, i: f"{t},{c}{'|urgent' * (i == 3)}", ("good", "bad"), {},
        "line 5: label 'bad|urgent' is not one of 2 classes: good, bad; it looks like several labels in one",
    ),
    "the only text of a class": (
        lambda t, c, i: f"{t},{'odd' if i == 7 else c}", None, {}, "line 9: the only text of class 'odd'",
    ),
    "commas without quotes": (lambda t, c, i: f"Well, {t},{c}", None, {}, "line 2: 3 fields, but the header has 2"),
    "one comma without quotes": (
        lambda t, c, i: f"{'Well, ' * (i == 0)}{t},{c}", None, {}, "line 2: 3 fields, but the header has 2 (text",
    ),
    "a line break without quotes": (
        lambda t, c, i: f"{t}{chr(10) * (i == 5)},{c}", None, {}, "line 7: 1 field, but the header has 2 (text, label)",
    ),
    "quotes that open a text and close it further down": (
        quoted, None, {"head": "text\tlabel", "suffix": ".tsv"}, "line 12: a quote opens a field here, and text",
    ),
    "quotes that swallow rows of a tsv file": (
        lambda t, c, i: f'{chr(34) * (i == 10)}{t}{chr(34) * (i == 12)}\t{c}', None,
        {"head": "text\tlabel", "suffix": ".tsv"}, "line 12: a quote opens a field here that runs on for 3 lines",
    ),
    "quotes that swallow rows of a csv file": (
        lambda t, c, i: f'{chr(34) * (i == 10)}{t}{chr(34) * (i == 20)},{c}', None, {},
        "line 12: a quote opens a field here that runs on for 11 lines and swallows the rows below",
    ),
    "quotes that swallow one row": (
        lambda t, c, i: f"{chr(34) * (i == 10)}{t}{chr(34) * (i == 11)},{c}", None, {}, "line 12: a quote opens",
    ),
    "quotes that swallow a row whose label is written otherwise": (
        lambda t, c, i: f"{chr(34) * (i == 10)}{t}{chr(34) * (i == 11)},{c.title() if i == 10 else c}", None, {},
        "line 12: a quote opens",
    ),
    "quotes that swallow a row before an empty column": (
        lambda t, c, i: f"{chr(34) * (i == 10)}{t}{chr(34) * (i == 11)},{c},", None, {"head": "text,label,note"},
        "line 12: a quote opens",
    ),
    "quotes that swallow a row before a column without two alike": (
        lambda t, c, i: f"{chr(34) * (i == 10)}{t}{chr(34) * (i == 11)},{c},id{i}", None, {"head": "text,label,id"},
        "line 12: a quote opens",
    ),
    "quotes that swallow rows of all widths": (
        lambda t, c, i: f"{chr(34) * (i == 10)}{t}{chr(34) * (i == 20)},{c}{',' * (i == 13)}{chr(10) * (i == 15)}",
        None, {}, "line 12: a quote opens a field here that runs on for 12 lines",
    ),
    "quotes that swallow rows whose label comes first": (
        lambda t, c, i: f"{c},{chr(34) * (i == 10)}{t}{chr(34) * (i == 12)}", None, {"head": "label,text"},
        "line 12: a quote opens a field here that runs on for 3 lines",
    ),
    "quoted semicolons": (
        lambda t, c, i: f'"{t}";"{c}"', None, {"head": '"text";"label"'}, "line 1: separated by ';', not ','",
    ),
    "a label that prints as nothing": (
        lambda t, c, i: f"{t},{c if i != 5 else chr(0x200B)}", None, {}, "line 7: the label is empty (1 such row)",
    ),
    "case behind what prints as nothing": (
        lambda t, c, i: f"{t},{c if i != 4 else 'Good' + chr(0x200B)}", None, {}, "'Good' and 'good' differ",
    ),
    "a quote never closed": (
        lambda t, c, i: f'{chr(34) * (i == 10)}{t},{c}', None, {}, "line 12: a quote opens a field here that is never",
    ),
    "latin-1": (lambda t, c, i: f"{t}{'é' * (i == 8)},{c}", None, {"encoding": "latin-1"}, "line 10: not UTF-8 (byte"),
    "utf-16": (plain, None, {"encoding": "utf-16"}, "line 1: UTF-16, not UTF-8; save the file as UTF-8"),
    "utf-16 without a mark": (plain, None, {"encoding": "utf-16-le"}, "line 1: UTF-16, not UTF-8"),
    "semicolons": (lambda t, c, i: f"{t};{c}", None, {"head": "text;label"}, "line 1: separated by ';', not ','"),
    "tabs in a csv file": (
        lambda t, c, i: f"{t}\t{c}", None, {"head": "text\tlabel"}, "not ','; name it .tsv, or save it with commas",
    ),
    "a name twice": (lambda t, c, i: f"{t},{c},x", None, {"head": "text,label,label"}, "'label' is there twice"),
    "a key twice": (
        lambda t, c, i: f'{{"text": "{t}", "label": "a", "label": "b"}}', None, {"head": "", "suffix": ".jsonl"},
        "line 2: an object has the key 'label' twice",
    ),
    "most labels missing": (
        lambda t, c, i: f"{t},{c * (i < 9)}", None, {},
        "line 11: the label is empty (31 such rows); check that data.label_column names the right column",
    ),
    "truth values for indices": (
        lambda t, c, i: json.dumps({"text": t, "label": c == "good"}), ("bad", "good"),
        {"head": "", "suffix": ".jsonl"}, "line 2: label 'true' is not one of 2 classes: bad, good",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_is_not_what_it_seems_is_refused_with_its_line(name, tmp_path, record_property):
    line, label_names, kind, expected = REFUSED[name]
    with pytest.raises(DataError) as refused:
        read(tmp_path, line, label_names, **kind)
    (problem,) = refused.value.problems
    assert expected in problem and "remove" not in problem
    record_property("bad data", 1)


def test_a_field_of_many_lines_is_named_and_kept(tmp_path):
    long = "a story\n" * 30
    found, splits = read(tmp_path, lambda t, c, i: f'"{t}{long * (i == 6)}",{c}')
    assert any(text.count("\n") == 30 for text in found)
    said = "rows of more than 20 lines: 1, the first from line 8; check whether a stray quote opens a field there"
    assert splits.notes[0].startswith(f"{tmp_path / 'train.csv'}: {said}")


@pytest.mark.parametrize(
    "story",
    [
        "Well, it begins\n\nand, so it goes on\n\nto, its end, at last",
        "\n".join(f"{n} apple, red" for n in range(7)),
        "It was, good\nthen, bad\nthen it, ended",
        "a\ttab\nand, another\ttab",
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_texts_of_several_lines_are_no_swallowed_rows(story, suffix, tmp_path):
    by = "\t" if suffix == ".tsv" else ","
    found, splits = read(
        tmp_path,
        lambda t, c, i: f'"{t} {story}"{by}{c}' if i < 20 else f"{t}{by}{c}",
        head=f"text{by}label",
        suffix=suffix,
    )
    assert len(found) == 40 and splits.notes == ()


@pytest.mark.parametrize(
    ("head", "row"),
    [
        ("text,likes,label", '"{t} It cost 1,200,000\nand more",200,{c}'),
        ("text,author,label", '"{t} Hi Bob,Ann,\nhow are you",Ann,{c}'),
        ("text,stars,label", '"{t} Sizes: 4,5,\nsold out",5,{c}'),
    ],
)
def test_a_value_of_another_column_makes_no_row_of_a_line(head, row, tmp_path):
    plain = head.replace("text", "{t}").replace("label", "{c}").replace("likes", "200").replace("author", "Ann")
    found, _ = read(
        tmp_path,
        lambda t, c, i: (row if i < 20 else plain.replace("stars", "5")).format(t=t, c=c),
        head=head,
        suffix=".csv",
    )
    assert len(found) == 40


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_column_may_be_called_line(suffix, tmp_path):
    rows = [{"line": f"text {index}", "label": index % 2} for index in range(40)]
    write = {
        ".csv": "line,label\n" + "".join(f"{row['line']},{row['label']}\n" for row in rows),
        ".jsonl": "".join(json.dumps(row) + "\n" for row in rows),
    }
    for name in ("train", "test"):
        (tmp_path / f"{name}{suffix}").write_text(write[suffix].replace("text", name))
    files = Files(**{name: str(tmp_path / f"{name}{suffix}") for name in ("train", "test")})
    assert load_splits(Data(files=files, text_column="line")).test["text"][0] == "test 0"
    assert next(read_texts(files.test, "line")) == "test 0"


def test_a_file_that_changes_while_it_is_read_is_refused_and_not_kept(tmp_path, monkeypatch):
    train, test = (table(tmp_path, name, plain) for name in ("train", "test"))
    files = Files(train=str(train), test=str(test))
    content, keep = train.read_bytes(), sources._keep

    def replaced(file, folder):
        train.write_bytes(content.replace(b"train", b"other"))
        keep(file, folder)

    monkeypatch.setattr(sources, "_keep", replaced)
    with pytest.raises(DataError, match=r"train\.csv: has changed while it was read"):
        load_splits(Data(files=files))
    monkeypatch.undo()
    train.write_bytes(content)
    assert load_splits(Data(files=files)).train["text"][0].startswith("train")


def test_a_new_file_may_be_read_by_several_at_once(tmp_path):
    path = table(tmp_path, "train", plain)
    wanted = {"text": "data.text_column", "label": "data.label_column"}
    with ThreadPoolExecutor(8) as pool:
        for round_ in range(5):
            path.write_text(path.read_text() + f"round {round_},good\n")
            found = list(pool.map(lambda _: sources._load_file(str(path), "x", wanted), range(8)))
            assert {len(one.rows) for one in found} == {41 + round_}


def class_labels(path, names, labels):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    rows = {"text": [f"{path.stem} {index}" for index in range(len(labels))], "label": labels}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


def test_files_of_a_split_that_name_their_classes_otherwise_are_refused(tmp_path):
    class_labels(tmp_path / "train-00000-of-00002.parquet", ["neg", "pos"], [0, 1] * 10)
    class_labels(tmp_path / "train-00001-of-00002.parquet", ["pos", "neg"], [0, 1] * 10)
    class_labels(tmp_path / "test-00000-of-00001.parquet", ["neg", "pos"], [0, 1] * 10)
    with pytest.raises(DataError, match="the files of train name their classes differently"):
        load_splits(Data(dataset=str(tmp_path)))
    class_labels(tmp_path / "train-00001-of-00002.parquet", ["neg", "pos"], [0, 1] * 10)
    assert load_splits(Data(dataset=str(tmp_path))).label_names == ("neg", "pos")


def test_what_datasets_leaves_beside_a_saved_data_set_is_not_read_twice(tmp_path):
    rows = {"text": [f"text {index}" for index in range(40)], "label": [index % 2 for index in range(40)]}
    for split in ("train", "test"):
        saved = datasets.Dataset.from_dict({**rows, "text": [f"{split} {text}" for text in rows["text"]]})
        saved.save_to_disk(tmp_path / split)
        datasets.load_from_disk(tmp_path / split).map(lambda row: {"more": 1})
    assert list(tmp_path.rglob("cache-*.arrow"))
    splits = load_splits(Data(dataset=str(tmp_path)))
    assert len(splits.train) + len(splits.validation) == len(splits.test) == 40


def test_a_card_that_says_how_its_files_are_to_be_read_is_refused(tmp_path):
    for name in ("train", "test"):
        table(tmp_path, name, plain)
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  sep: ';'\n---\n")
    with pytest.raises(DataError, match="sets sep for its files, which distill does not support"):
        load_splits(Data(dataset=str(tmp_path)))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_new_contents_are_read_whatever_the_date_says(suffix, tmp_path):
    def write(path, name):
        rows = [{"text": text, "label": label} for text, label in words(name)]
        if suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif suffix == ".csv":
            path.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.utime(path, (1e9, 1e9))

    (tmp_path / "folder").mkdir()
    train, test = (tmp_path / "folder" / f"{split}{suffix}" for split in ("train", "test"))
    for name in ("once", "then"):  # as many bytes
        write(train, name)
        write(test, f"other {name}")
        for source in ({"files": Files(train=str(train), test=str(test))}, {"dataset": str(train.parent)}):
            splits = load_splits(Data(**source))
            assert all(text.startswith(name) for text in splits.train["text"])
            assert all(text.startswith(f"other {name}") for text in splits.test["text"])


def test_a_folder_is_read_as_its_files_are(tmp_path):
    for name in ("train", "test"):
        table(tmp_path, name, flags)
    splits = load_splits(Data(dataset=str(tmp_path), label_names=("TRUE", "FALSE")))
    assert splits.label_names[splits.test["label"][0]] == "TRUE" and splits.test["text"][0] == "test 0 is good"
    table(tmp_path, "train", lambda t, c, i: f"Well, {t},{c}")
    with pytest.raises(DataError, match=r"train\.csv: line 2: 3 fields"):
        load_splits(Data(dataset=str(tmp_path)))


def test_a_folder_of_several_files_is_read_in_their_order(tmp_path):
    for number, name in enumerate(("first", "second")):
        path = table(tmp_path, name, plain)
        path.rename(tmp_path / f"train-0000{number}-of-00002.csv")
    table(tmp_path, "test", plain).rename(tmp_path / "test-00000-of-00001.csv")
    splits = load_splits(Data(dataset=str(tmp_path)))
    found = {row["example_id"]: row["text"] for rows in (splits.train, splits.validation) for row in rows}
    assert found["train/0"] == "first 0 is good" and found["train/79"] == "second 39 is bad" and len(found) == 80
    (tmp_path / "train-00001-of-00002.csv").rename(tmp_path / "train-00001-of-00002.jsonl")
    with pytest.raises(DataError, match=r"holds \.csv and \.jsonl files"):
        load_splits(Data(dataset=str(tmp_path)))


def test_columns_that_are_not_read_are_named(tmp_path):
    _, splits = read(tmp_path, lambda t, c, i: f"{i},{t},it follows,{c}", head="id,text,hypothesis,label")
    assert splits.unread == ("id", "hypothesis")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["bad", "bad|urgent", "good"], ["bad|urgent"]),
        (["a;b", "c"], ["a;b"]),
        (["red", "red, blue", "blue"], ["red, blue"]),
        (["salt and pepper", "food, drink", "and/or"], []),  # nothing else says that these are several
        (["C", "C++", "C/C++"], ["C/C++"]),
    ],
)
def test_labels_that_look_joined_are_named(names, expected):
    assert joined(names) == expected


@pytest.mark.parametrize("order", [1, -1])
def test_names_do_not_depend_on_the_order_of_rows(order):
    labels = ["b ", "b", "10", "9", "caf\u00e9", "cafe\u0301", "x\u200b", "x"][::order]
    assert names_of(labels) == ("10", "9", "b", "caf\u00e9", "x")
    assert names_of(["10", "9", "-1"][::order]) == ("-1", "9", "10")


PREDICTED = {
    "commas without quotes": (
        "a.csv",
        "text\nNot great, the plot was terrible.\n",
        "line 2: 2 fields, but the header has 1",
    ),
    "numbers": ("a.csv", "text\n1\n2.5\n-3e2\n", "'text' holds numbers, not texts"),
    "numbers and a hole": ("a.csv", "text,x\n1,a\n,b\n1.5,c\n", "'text' holds numbers, not texts"),
    "amounts, shares and dates": ("a.csv", 'text\n"1,000"\n12 %\n2020-01-01\nnan\n', "holds numbers, not texts"),
    "json without the column": ("a.json", '[{"review": "fine"}]', "no column 'text', only review"),
    "numbers beside texts": ("a.csv", "text,review\n1,fine\n2,poor\n", "'text' holds numbers, not texts"),
    "semicolons": ("a.csv", "text;label\nfine;1\n", "separated by ';', not ','"),
    "utf-16 lines": ("a.txt", "fine film\n".encode("utf-16"), "line 1: UTF-16, not UTF-8"),
    "latin-1 lines": ("a.txt", "fine\ncafé\n".encode("latin-1"), "line 2: not UTF-8"),
}


@pytest.mark.parametrize("name", PREDICTED)
def test_predict_refuses_a_file_of_no_texts(name, tmp_path, tiny_bert, record_property):
    file, content, expected = PREDICTED[name]
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    code, out, err = run("predict", tiny_bert, "--file", tmp_path / file)
    assert (code, out) == (2, "") and expected in err
    record_property("bad data", 1)


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    for name in ("a.txt", "a.csv", "a.jsonl"):
        content = {"a.txt": "fine\n", "a.csv": "text\nfine\n", "a.jsonl": '{"text": "fine"}\n'}[name]
        (tmp_path / name).write_bytes(content.encode("utf-8-sig"))
        assert list(read_texts(str(tmp_path / name), "text")) == ["fine"]


def test_predicting_leaves_no_copy_of_the_texts(tmp_path, tiny_bert, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "a.csv").write_text("text\na fine film\n")
    assert run("predict", tiny_bert, "--file", tmp_path / "a.csv")[0] == 0
    assert not (tmp_path / "cache").exists()


# Of each: how a thousand texts of 400,000 letters are written into a few bytes.
BOMBS = {
    "a dictionary": {},
    "prefixes": {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
    "compression": {"use_dictionary": False},
    "lengths": {"use_dictionary": False, "column_encoding": {"text": "DELTA_LENGTH_BYTE_ARRAY"}},
}
READ_ALL = """
import resource, sys
from distill.errors import DataError
from distill.data.texts import read_texts
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = used()
try:
    count = sum(len(text) == 400_000 for text in read_texts(sys.argv[1], "text"))
except DataError as error:
    count = str(error)
print(count, (used() - before) // 1024, sep=chr(9))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory in KiB")
@pytest.mark.parametrize("how", BOMBS)
def test_a_few_bytes_of_parquet_do_not_become_all_of_memory(how, tmp_path, record_property):
    """400 MB of texts: read a few at a time, or refused; and with no copy of them in a cache."""
    path = tmp_path / "bomb.parquet"
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["a" * 400_000]))
    settings = {"compression": "zstd", "write_statistics": False, **BOMBS[how]}
    pq.write_table(pa.table({"text": texts.cast(pa.string())}), path, **settings)
    assert path.stat().st_size < 25_000
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", READ_ALL, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    count, more = done.stdout.strip().split("\t")
    assert count == "1000" or "'text' unpacks from" in count, done
    assert int(more) < 150, done  # MB
    assert not list((tmp_path / "cache").rglob("*.arrow"))
    record_property("attacks refused", 1)
