"""Files that are no data to train on: each is refused in one line, with the file, the row and the cure."""

import gzip
import io
import json
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import check_refused
from test_data import rows_of, write

TRAIN = rows_of(40)


def content(name, data):
    """A file of this name and these bytes or text."""

    def made(folder):
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        return folder / name

    return made


def rows(*rows, name="train.csv", columns=("text", "label")):
    return lambda folder: write(folder / name, list(rows), columns)


def csv_of(rows):
    return "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows)


def zipped(name, member, data):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(member, data)
    return content(name, packed.getvalue())


def tarred(name):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        member = tarfile.TarInfo("../../escaped.csv")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"a,b"))
    return content(name, packed.getvalue())


def jsonl(values):
    return content("train.jsonl", "".join(json.dumps(value) + "\n" for value in values))


def not_utf_8(folder):
    texts = pa.array([b"caf\xe9 %d" % index for index in range(40)], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": texts, "label": [index % 2 for index in range(40)]}), folder / "train.parquet")
    return folder / "train.parquet"


PLAIN = csv_of([(f"text {index}", index % 2) for index in range(40)])
# Of each: what makes the train file, the settings beside it, and what the one line says.
CASES = {
    "no such file": (lambda folder: folder / "none.csv", {}, "data.files.train: {train}: no such file (relative"),
    "a folder": (lambda folder: folder, {}, ": a folder, not a file"),
    "a null in its name": (lambda folder: f"{folder}/a\0b.csv", {}, "no such file"),
    "a name too long": (lambda folder: folder / ("x" * 300 + ".csv"), {}, "cannot be read: File name too long"),
    "a device": (lambda folder: "/dev/zero", {}, "/dev/zero: a device or a pipe, not a file"),
    "an address": (lambda folder: "https://example.org/train.csv", {}, "no such file"),
    "a pattern": (lambda folder: folder / "*.csv", {}, "no such file"),
    "an unknown kind": (content("train.xlsx", "x"), {}, "train.xlsx: not one of .csv, .tsv"),
    "no kind": (content("train", "x"), {}, "not one of .csv, .tsv"),
    "nothing in it": (content("train.csv", ""), {}, "{train}: the file is empty"),
    "header only": (content("train.csv", "text,label\n"), {}, "{train}: has no rows"),
    "gzip": (content("train.csv.gz", gzip.compress(PLAIN.encode())), {}, "packed with gzip; unpack it first"),
    "gzip by another name": (content("train.csv", gzip.compress(PLAIN.encode())), {}, "{train}: packed with gzip"),
    "zip": (zipped("train.zip", "train.csv", PLAIN), {}, "{train}: packed with zip"),
    "zip that leaves its folder": (zipped("train.csv", "../../escaped.csv", PLAIN), {}, "{train}: packed with zip"),
    "tar that leaves its folder": (tarred("train.csv"), {}, "{train}: packed with gzip"),
    "xz": (content("train.csv", b"\xfd7zXZ\0 and more"), {}, "packed with xz"),
    "zstd": (content("train.jsonl", b"\x28\xb5\x2f\xfd and more"), {}, "packed with zstd"),
    "latin-1": (content("train.csv", "text,label\ncaf\xe9,1\n".encode("latin-1")), {}, "line 2: not UTF-8 (byte"),
    "utf-16": (content("train.csv", PLAIN.encode("utf-16")), {}, "{train}: line 1: UTF-16, not UTF-8; save the"),
    "semicolons": (content("train.csv", PLAIN.replace(",", ";")), {}, "line 1: separated by ';', not ','; save"),
    "no header": (content("train.csv", PLAIN.split("\n", 1)[1]), {}, "no column 'text', only text 0, 0"),
    "a quote never closed": (
        content("train.csv", 'text,label\n"a,1\n' + PLAIN), {}, "line 2: a quote opens a field",
    ),
    "too many fields": (content("train.csv", PLAIN + "one,two,three\n"), {}, "line 42: 3 fields, but the header"),
    "a column too many names": (
        content("train.csv", ",".join(f"c{n}" for n in range(500)) + "\n" + ",".join(["1"] * 500) + "\n"), {},
        "no column 'text', only c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, ...",
    ),
    "no text column": (rows(*TRAIN), {"text_column": "review"}, "text_column: no column 'review', only text, label"),
    "no label column": (rows(*TRAIN), {"label_column": "stars"}, "data.label_column: no column 'stars'"),
    "an empty text": (rows(*TRAIN, ("", 0)), {}, "{train}: line 82: the text is empty (1 such row)"),
    "a blank text": (rows(*TRAIN, (" \t", 0)), {}, "line 82: the text is empty"),
    "a null text": (rows(*TRAIN, (None, 1), name="train.parquet"), {}, "row 40: the text is empty"),
    "numbers for texts": (rows(*((n, n % 2) for n in range(40))), {}, "holds numbers, not texts"),
    "lists for texts": (
        jsonl({"text": ["a", "b"], "label": n % 2} for n in range(40)), {}, "line 1: 'text' holds a list, not text",
    ),
    "a number of thousands of digits": (
        content("train.jsonl", f'{{"text": "a", "label": {"9" * 5000}}}\n'), {},
        "train.jsonl: line 1: a number of thousands of digits",
    ),
    "objects for texts": (jsonl({"text": {"a": 1}, "label": n % 2} for n in range(40)), {}, "'text' holds an object"),
    "texts of several types": (
        jsonl({"text": n if n % 3 else "a", "label": n % 2} for n in range(40)), {},
        "line 2: 'text' holds a number, not text",
    ),
    "lists for labels": (
        jsonl({"text": f"t {n}", "label": [n % 2]} for n in range(40)), {},
        "line 1: 'label' holds a list, not a number or a name",
    ),
    "an empty label": (rows(*TRAIN, ("x", ""), ("y", "")), {}, "{train}: line 82: the label is empty (2 such rows)"),
    "a null label": (rows(*TRAIN, ("x", None), name="train.parquet"), {}, "row 40: the label is empty"),
    "a label left out": (
        jsonl({"text": f"t {n}", **({} if n == 5 else {"label": n % 2})} for n in range(40)), {},
        "line 6: the label is empty",
    ),
    "fractions for labels": (rows(*rows_of(40, (0.5, 1.0))), {}, "line 2: label '0.5' is neither a whole"),
    "a label without end": (
        content("train.csv", csv_of((f"t {n}", n % 2 or "inf") for n in range(40))), {}, "line 2: label 'inf' is",
    ),
    "a label too large": (
        jsonl({"text": f"t {n}", "label": n % 2 or 1e300} for n in range(40)), {}, "line 1: label '1e+300' is neither",
    ),
    "a label that is no number": (
        rows(*rows_of(40, (0.0, float("nan"))), name="train.parquet"), {}, "row 1: the label is empty (20 such rows)",
    ),
    "one column for both": (rows(*TRAIN), {"label_column": "text"}, "label_column: one column twice: text, text"),
    "one class": (rows(*rows_of(40, (1,))), {}, "one class only ('1'); a classifier needs two"),
    "a label that is no name": (
        rows(*rows_of(40, ("x", "y"))), {"label_names": ["x", "z"]}, "line 4: label 'y' is not one of 2 classes: x, z",
    ),
    "a number that is no class": (
        rows(*rows_of(40, (0, 1, 7))), {"label_names": ["a", "b"]}, "{train}: line 6: label '7' is not one of 2",
    ),
    "a number below zero": (
        rows(*rows_of(40, (-1, 0))), {"label_names": ["a", "b"]}, "label '-1' is not one of 2 classes: a, b",
    ),
    "a class of each text's own": (
        rows(*((f"text {n}", f"id {n}") for n in range(500))), {"test": "of its classes"},
        "500 classes of one text each: data.label_column probably names the wrong column",
    ),
    "100,000 classes": (
        content("train.csv", csv_of((f"text {n}", f"c{n // 2}") for n in range(200_000))), {"test": "of its classes"},
        "does not make stratified train and validation splits of 100000",
    ),
    "too few to carve validation from": (rows(*rows_of(8)), {}, "does not make stratified train and validation splits"),
    "texts that all stand in test": (rows(*((f"other {text}", n) for text, n in TRAIN)), {}, "every train text"),
    "no JSON": (content("train.jsonl", "{not json\n"), {}, "{train}: line 1: column 2: not JSON"),
    "JSON that is no table": (content("train.json", '{"a": 1}'), {}, "no column 'text', only a"),
    "JSON of lists": (content("train.jsonl", "[1,2]\n[3]\n"), {}, "line 1: a list, not an object with keys"),
    "JSON too deep": (content("train.json", "[" * 100_000), {}, "JSON that is nested too deeply"),
    "half a surrogate pair": (
        content("train.jsonl", '{"text": "a \\ud800", "label": 0}\n' * 40), {}, "line 1: holds half a character",
    ),
    "no Parquet": (content("train.parquet", b"PAR1 not really"), {}, "cannot be read as parquet"),
    "bytes in Parquet that are no text": (not_utf_8, {}, "{train}: 'text' is damaged or not UTF-8"),
    "no Arrow": (content("train.arrow", b"ARROW1\0\0" + bytes(100)), {}, "cannot be read as arrow"),
    "escape sequences": (
        content("train.csv", "text,label\na,\x1b[2Jb\nc,1\n" * 20), {"label_names": ["0", "1"]}, r"label '\x1b[2Jb'",
    ),
}  # fmt: skip


SLOW = ("100,000 classes",)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES])
def test_bad_data_is_one_line_and_nothing_is_written(name, tmp_path, tiny_bert, record_property):
    make, settings, expected = CASES[name]
    (tmp_path / "in").mkdir()
    train = make(tmp_path / "in")
    test = write(tmp_path / "test.csv", [(f"other {text}", label) for text, label in TRAIN])
    settings = {"train": str(train), "test": str(test), "text_column": "text", "label_column": "label"} | settings
    if settings["test"] == "of its classes":
        header, *lines = train.read_text().splitlines()[:3]
        test.write_text("\n".join([header, *(f"other {line}" for line in lines)]))
        settings["test"] = str(test)
    files = {split: settings.pop(split) for split in ("train", "test")}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({
        "data": {"files": files, "max_tokens": 32, **settings},
        "teacher": {"model": str(tiny_bert), "output": str(tmp_path / "teacher")},
    }))  # fmt: skip
    expected = expected.format(train=train)
    check_refused(tmp_path, [expected], "teacher", recipe)
    record_property("bad data", 1)


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        (rows_of(40, (0, 2), "test"), "test.csv: line 4: label '2' is not one of 2 classes: 0, 1"),
        ([*rows_of(40, word="test"), ("", 0)], "test.csv: line 82: the text is empty"),
        ([("x", 1)] * 0, "test.csv: has no rows"),
    ],
    ids=["a label unseen in train", "an empty text", "no rows"],
)
def test_bad_test_data_is_one_line(test, expected, tmp_path, tiny_bert, record_property):
    files = {"train": str(write(tmp_path / "train.csv", TRAIN)), "test": str(write(tmp_path / "test.csv", test))}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"data": {"files": files}, "teacher": {"model": str(tiny_bert)}}))
    check_refused(tmp_path, [expected], "teacher", recipe, "--output", tmp_path / "teacher")
    record_property("bad data", 1)


def test_odd_files_that_are_data_are_read(tmp_path, tiny_bert):
    """A byte-order mark, a null, control characters, a text of ten megabytes, words that look like nothing."""
    from distill.data.splits import load_splits
    from distill.recipe.schema import Data, Files

    odd = ["a\0b", "\x07\x1b[31m", "film " * 2_000_000, "NA", "null", " spaces ", '"quoted", yes', "\u202eright\u202c"]
    train = write(tmp_path / "train.csv", TRAIN + [(text, 0) for text in odd])
    train.write_bytes(b"\xef\xbb\xbf" + train.read_bytes())
    test = write(tmp_path / "test.csv", rows_of(10, word="test"))
    splits = load_splits(Data(files=Files(train=str(train), test=str(test))))
    assert len(splits.train) + len(splits.validation) == len(TRAIN) + len(odd)
    assert set(odd) - {"a\0b"} <= set(splits.train["text"]) | set(splits.validation["text"])


def test_a_name_with_brackets_and_stars_is_that_file_and_no_other(tmp_path, tiny_bert):
    from distill.data.texts import read_texts

    for name, text in (("t[1].csv", "meant"), ("t1.csv", "another"), ("t*.csv", "starred"), ("**.csv", "twice")):
        (tmp_path / name).write_text(f"text\n{text}\n")
        assert list(read_texts(str(tmp_path / name), "text")) == [text]


def hub_like(folder, **files):
    for split in ("train", "test"):
        write(folder / f"{split}.csv", rows_of(40, word=split))
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)


def card(place, *, before="", inside="", name="default"):
    """A card whose header names `place` as its data; `before` stands before the header, `inside` in it."""
    text = f"{before}---\n{inside}configs:\n- config_name: {name}\n  data_files: {json.dumps(place)}\n---\n"
    return {"README__md": text.encode()}


def two_configs(place):
    configs = f"- config_name: first\n  data_files: train.csv\n- config_name: second\n  data_files: {place}\n"
    return {"README__md": f"---\nconfigs:\n{configs}---\n".encode()}


ELSEWHERE = "README.md names data outside it: ../secret.csv"
FOLDERS = {
    "a card that names files elsewhere": (card("../secret.csv"), ELSEWHERE),
    "a card that names a server": (
        {"README__md": b"---\nconfigs:\n- config_name: a\n  data_files:\n  - split: train\n"
         b"    path: http://example.org/x.csv\n---\n"},
        "README.md names data outside it: http://example.org/x.csv",
    ),
    "a card with an absolute place": (
        {"README__md": b"---\nconfigs:\n- config_name: a\n  data_dir: /etc\n---\n"}, "names data outside it: /etc",
    ),
    "a card that is no YAML": ({"README__md": b"---\na: [\n---\n"}, "README.md: "),
    "an archive": ({"train__zip": b"PK\x03\x04 and more"}, "train.zip is packed with zip"),
    # What one reader takes for no header, and another reads.
    "a blank line before the card": (card("../secret.csv", before="\n"), ELSEWHERE),
    "a space before the card": (card("../secret.csv", before=" "), ELSEWHERE),
    "a byte-order mark before the card": (card("../secret.csv", before="\ufeff"), ELSEWHERE),
    "dashes in a value of the card": (card("../secret.csv", inside="pretty_name: a---b\n"), ELSEWHERE),
    "dashes in a block of the card": (card("../secret.csv", inside="pretty_name: |\n  ---\n  b\n"), ELSEWHERE),
    "a line of dashes in a value": (card("../secret.csv", inside="pretty_name: 'a\n\n---\n\n  b'\n"), "README.md: "),
    "files of a hub": (card("hf://datasets/a/b/x.csv"), "outside it: hf://datasets/a/b/x.csv"),
    "files in an archive of a server": (card("zip://x.csv::http://a.b/x.zip"), "outside it: zip://x.csv::http://a.b"),
    "files by a scheme of several words": (card("git+ssh://a/x.csv"), "outside it: git+ssh://a/x.csv"),
    "files by a scheme without a name": (card("://a/x.csv"), "outside it: ://a/x.csv"),
    "files of the machine": (card("/etc/passwd"), "outside it: /etc/passwd"),
    "files of the machine by address": (card("file:///etc/passwd"), "outside it: file:///etc/passwd"),
    "files of the user": (card("~/.ssh/config"), "outside it: ~/.ssh/config"),
    "files elsewhere, split by Windows": (card("..\\secret.csv"), "README.md names data outside it: .."),
    "files elsewhere behind a folder": (card("a/../../secret.csv"), "outside it: a/../../secret.csv"),
    "files elsewhere in a list of lists": (card([["../secret.csv"]]), "README.md: Expected data_files"),
    "files elsewhere in a pattern": (card("[.][.]/secret.csv"), "holds no data files"),
    "files elsewhere in the second subset": (two_configs("../secret.csv"), ELSEWHERE, {"subset": "second"}),
    "a server in the second subset": (two_configs("http://a.b/x.csv"), "it: http://a.b/x", {"subset": "second"}),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_data_that_leads_elsewhere_is_refused(name, tmp_path, tiny_bert, record_property):
    files, expected, *settings = FOLDERS[name]
    (tmp_path / "data").mkdir()
    hub_like(tmp_path / "data", **files)
    write(tmp_path / "secret.csv", rows_of(40))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({
        "data": {"dataset": str(tmp_path / "data"), **(settings[0] if settings else {})},
        "teacher": {"model": str(tiny_bert), "output": str(tmp_path / "out")},
    }))  # fmt: skip
    check_refused(tmp_path, [expected], "teacher", recipe)
    record_property("attacks refused", 1)


def test_a_folder_with_a_link_out_of_it_is_refused(tmp_path, tiny_bert, record_property):
    (tmp_path / "data").mkdir()
    hub_like(tmp_path / "data")
    (tmp_path / "data" / "train.csv").rename(tmp_path / "secret.csv")
    (tmp_path / "data" / "train.csv").symlink_to(tmp_path / "secret.csv")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"data": {"dataset": str(tmp_path / "data")}, "teacher": {"model": str(tiny_bert)}}))
    check_refused(tmp_path, ["train.csv is a link to a place outside it"], "teacher", recipe)
    (tmp_path / "data" / "train.csv").unlink()
    (tmp_path / "data" / "train.csv").symlink_to("train.csv")
    check_refused(tmp_path, ["train.csv is a link to a place outside it"], "teacher", recipe)
    record_property("attacks refused", 2)


def test_a_folder_whose_card_names_its_own_files_is_read(tmp_path):
    """What a clone of a data set of the hub looks like."""
    from distill.data.splits import load_splits
    from distill.recipe.schema import Data

    card = b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train.csv\n"
    hub_like(tmp_path, README__md=card + b"  - split: test\n    path: te*.csv\n---\n# A data set\n")
    splits = load_splits(Data(dataset=str(tmp_path)))
    assert len(splits.train) + len(splits.validation) == len(splits.test) == 40


def test_notes_beside_the_card_say_nothing_of_where_the_files_lie(tmp_path):
    """datasets takes the configurations of .huggingface.yaml for the card's own."""
    from distill.data.folder import read_folder

    notes = b"configs:\n- config_name: default\n  data_files: http://example.org/x.csv\n"
    hub_like(tmp_path, __huggingface__yaml=notes)
    assert (tmp_path / ".huggingface.yaml").is_file()
    assert read_folder(tmp_path, None).files == {split: (tmp_path / f"{split}.csv",) for split in ("train", "test")}
