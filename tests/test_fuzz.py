"""Random and damaged recipes, data files and texts: each gives an answer or one clear line, never a traceback."""

import csv
import io
import itertools
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data import rows_of, write
from test_recipe import GOOD, RECIPES

from distill.data.splits import load_splits
from distill.data.texts import read_texts
from distill.errors import DataError, RecipeError
from distill.recipe.file import dump_recipe, load_recipe
from distill.recipe.schema import Data, Files

NUMBERS = itertools.count()  # new names, because the cache of datasets is keyed by file name
# --hypothesis-profile deep takes forty times as many.
SETTINGS = settings(
    deadline=None,
    max_examples=settings.default.max_examples // 4,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
WORDS = [
    "data", "teacher", "student", "training", "files", "train", "test", "model", "layers", "loss", "temperature",
    "label_names", "export", "formats", "benchmark", "shapes", "seed", "max_tokens", "null", "true", "3", "1e400",
    ".nan", "[]", "{}", "&a", "*a", "<<", "!!python/name:os.system", "-", ":", "|", ">", "'", '"', "#",
    "2020-01-01", "0o7", "!!binary aGk=", "!!set {a}", "!!omap [a: 1]",
]  # fmt: skip


@st.composite
def damaged(draw, text):
    """Return a text with some of its lines cut, doubled, moved, indented differently or replaced by a word."""
    lines = text.splitlines()
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        kind = draw(st.sampled_from(["cut", "double", "move", "indent", "word", "letter", "end"]))
        if kind == "cut" and len(lines) > 1:
            del lines[at]
        elif kind == "double":
            lines.insert(at, lines[at])
        elif kind == "move":
            lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
        elif kind == "indent":
            lines[at] = " " * draw(st.integers(0, 6)) + lines[at].lstrip()
        elif kind == "word":
            key, colon, _ = lines[at].partition(":")
            lines[at] = f"{key}{colon} {draw(st.sampled_from(WORDS))}"
        elif kind == "letter":
            place = draw(st.integers(0, len(lines[at])))
            lines[at] = lines[at][:place] + draw(st.characters(codec="utf-8")) + lines[at][place:]
        else:
            lines[at] = lines[at][: draw(st.integers(0, len(lines[at])))]
    return "\n".join(lines)


def read_recipe(path, content, overrides=()):
    path.write_bytes(content)
    try:
        recipe = load_recipe(path, overrides)
    except RecipeError as error:
        assert error.problems and not any("\n" in problem for problem in error.problems)
    else:
        path.write_text(dump_recipe(recipe), encoding="utf-8")
        assert load_recipe(path) == recipe


@SETTINGS
@given(content=st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(WORDS)).map(" ".join).map(str.encode)))
def test_any_bytes_for_a_recipe(content, tmp_path):
    read_recipe(tmp_path / "r.yaml", content)


@SETTINGS
@given(text=st.sampled_from([GOOD, *(path.read_text() for path in RECIPES)]).flatmap(damaged))
def test_recipes_with_slips_of_the_pen(text, tmp_path):
    read_recipe(tmp_path / "r.yaml", text.encode())


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(WORDS), inner, max_size=3)),
    max_leaves=8,
)


@SETTINGS
@given(values=st.dictionaries(st.sampled_from([*WORDS[:8], "export", "benchmark"]), VALUES))
def test_any_values_under_the_keys_of_a_recipe(values, tmp_path):
    read_recipe(tmp_path / "r.yaml", json.dumps(values).encode())


@SETTINGS
@given(override=st.one_of(st.text(max_size=30), st.lists(st.sampled_from(WORDS), min_size=2, max_size=5).map(".".join)))
def test_any_override(override, tmp_path):
    read_recipe(tmp_path / "r.yaml", GOOD.encode(), [override, f"{override}=1", f"data.seed={override}"])


def read_data(folder, name, content):
    number = next(NUMBERS)
    test = folder / "test.csv"
    if not test.exists():
        write(test, rows_of(10, word="test"))
    path = folder / f"{number}-{name}"
    path.write_bytes(content)
    try:
        load_splits(Data(files=Files(train=str(path), test=str(test))))
    except DataError as error:
        assert error.problems and not any("\n" in problem for problem in error.problems)
    try:
        assert all(isinstance(text, str) for text in read_texts(str(path), "text"))
    except DataError as error:
        assert not any("\n" in problem for problem in error.problems)


KINDS = st.sampled_from(["train.csv", "train.tsv", "train.json", "train.jsonl", "train.parquet", "train.arrow"])
CELLS = st.one_of(st.text(max_size=10), st.integers(), st.floats(), st.booleans(), st.none(), st.just("a"))


@SETTINGS
@given(name=KINDS, content=st.binary(max_size=300))
def test_any_bytes_for_data(name, content, tmp_path):
    read_data(tmp_path, name, content)


@SETTINGS
@given(rows=st.lists(st.tuples(CELLS, CELLS), max_size=30), header=st.sampled_from(["text,label", "text", "a,b", ""]))
def test_any_rows_of_a_csv(rows, header, tmp_path):
    sink = io.StringIO()
    sink.write(header + "\n")
    csv.writer(sink).writerows(rows)
    read_data(tmp_path, "train.csv", sink.getvalue().encode("utf-8", "replace"))


@SETTINGS
@given(rows=st.lists(st.dictionaries(st.sampled_from(["text", "label", "x"]), VALUES), max_size=20))
def test_any_objects_of_a_jsonl(rows, tmp_path):
    read_data(tmp_path, "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())


@SETTINGS
@given(labels=st.lists(st.one_of(CELLS, st.sampled_from([0, 1, "a", 1e300, 2**63, -1, float("nan")])), max_size=30))
def test_any_labels_of_good_texts(labels, tmp_path):
    rows = [{"text": f"text {index}", "label": label} for index, label in enumerate(labels)]
    read_data(tmp_path, "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    sink = io.StringIO()
    csv.writer(sink).writerows([("text", "label"), *(row.values() for row in rows)])
    read_data(tmp_path, "train.csv", sink.getvalue().encode("utf-8", "replace"))


@SETTINGS
@given(texts=st.lists(st.text(max_size=20), min_size=4, max_size=30))
def test_any_texts_with_good_labels(texts, tmp_path):
    rows = [{"text": text, "label": index % 2} for index, text in enumerate(texts)]
    read_data(tmp_path, "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())


@SETTINGS
@given(content=st.data(), rows=st.integers(2, 40))
def test_a_parquet_file_with_changed_bytes(content, rows, tmp_path):
    sink = io.BytesIO()
    texts, labels = zip(*rows_of(rows), strict=True)
    pq.write_table(pa.table({"text": texts, "label": labels}), sink)
    packed = bytearray(sink.getvalue())
    for _ in range(content.draw(st.integers(1, 5))):
        packed[content.draw(st.integers(0, len(packed) - 1))] = content.draw(st.integers(0, 255))
    read_data(tmp_path, "train.parquet", bytes(packed))


def test_a_parquet_file_whose_schema_is_damaged(tmp_path):
    """Where the metadata of a column no longer fits its schema, pyarrow ended the process."""
    sink = io.BytesIO()
    texts, labels = zip(*rows_of(4), strict=True)
    pq.write_table(pa.table({"text": texts, "label": labels}), sink, store_schema=False)
    packed = sink.getvalue()
    footer = len(packed) - 8 - int.from_bytes(packed[-8:-4], "little")
    for place, bit in itertools.product(range(footer, footer + 40), (0, 2, 6)):
        read_data(tmp_path, "train.parquet", packed[:place] + bytes([packed[place] ^ 1 << bit]) + packed[place + 1 :])


@pytest.mark.parametrize("content", [b'{"text": "a\\ud800"}\n', b"text\n\x00\n", b'"text"\n"\xf0\x9f'])
def test_found_before(content, tmp_path):
    read_data(tmp_path, "train.jsonl" if content.startswith(b"{") else "train.csv", content)
