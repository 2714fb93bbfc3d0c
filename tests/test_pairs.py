"""Pairs of texts, from a table with two columns to a report: read, cut and typed as transformers does."""

import json

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from conftest import BAD, BRIEFLY, FILLER, GOOD, LABELS, make_classifier, make_tokenizer, run
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import distill
from distill import commands
from distill.data.encoding import Truncation, encode
from distill.data.pairs import joined_texts, texts_of
from distill.data.splits import load_splits
from distill.errors import DataError, ModelError
from distill.inference.linear import LinearClassifier, WordNgrams, counts
from distill.models.students import build_from_layers
from distill.recipe.file import load_recipe
from distill.recipe.schema import Data, Files

TOKENIZER = make_tokenizer(FILLER + GOOD + BAD)
TRAINING = {**BRIEFLY, "num_train_epochs": 6}
SENTENCE = st.lists(st.sampled_from(FILLER), min_size=1, max_size=12).map(" ".join)


def write_pairs(path, count, seed):
    """Pairs whose label is that of the second text; the words alone do not tell which text they are in."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        sides = [
            " ".join([*rng.choice(FILLER, 3), rng.choice((BAD, GOOD)[label]), *rng.choice(FILLER, 3)])
            for label in (index // 2 % 2, index % 2)
        ]
        rows.append({"premise": f"{sides[0]} {seed}{index}", "hypothesis": sides[1], "label": LABELS[index % 2]})
    pd.DataFrame(rows).to_csv(path, index=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with tables of pairs and a recipe."""
    folder = tmp_path_factory.mktemp("pairs")
    for name, count, seed in (("train", 400, 0), ("test", 100, 1), ("transfer", 100, 2)):
        write_pairs(folder / f"{name}.csv", count, seed)
    recipe = {
        "data": {
            "files": {name: str(folder / f"{name}.csv") for name in ("train", "test", "transfer")},
            "text_column": ["premise", "hypothesis"], "label_names": LABELS, "max_tokens": 24,
        },
        "teacher": {
            "model": str(make_classifier(folder / "bert")),
            "pretrained": False, "training": TRAINING,
        },
        "student": {"layers": 2, "control": True, "training": TRAINING},
        "export": {"formats": ["torch-fp16", "onnx-fp32", "onnx-int8"], "max_accuracy_drop": 0.1, "min_agreement": 0.8},
        "benchmark": {"shapes": ["1x16"], "rounds": 5},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return folder


@pytest.fixture(scope="module")
def world(folder):
    """The folder with a finished run of teacher, student, control, exports and report."""
    commands.run(load_recipe(folder / "recipe.yaml"), folder / "out", device="cpu", force=True)
    return folder


@given(pairs=st.lists(st.tuples(SENTENCE, SENTENCE), min_size=1, max_size=4), most=st.integers(6, 30))
def test_pairs_are_cut_and_typed_as_transformers_does(pairs, most):
    found = encode(TOKENIZER, [joined_texts(*pair) for pair in pairs], Truncation(most, "longest_first"))
    for pair, ids, types, length in zip(pairs, found.ids, found.types, found.lengths, strict=True):
        wanted = TOKENIZER(*pair, truncation="longest_first", max_length=most, return_token_type_ids=True)
        assert (ids, types) == (wanted["input_ids"], wanted["token_type_ids"])
        assert length == len(TOKENIZER(*pair)["input_ids"])


def test_a_pair_is_a_row_and_leaks_as_a_pair(folder, tmp_path):
    data = load_recipe(folder / "recipe.yaml").data
    splits = load_splits(data)
    table = pd.read_csv(folder / "train.csv")
    known = set(zip(table["premise"], table["hypothesis"], strict=True))
    assert set(texts_of(splits.train)) <= known and len(splits.train) + len(splits.validation) == 400
    test = pd.read_csv(folder / "test.csv")
    swapped = test.assign(premise=test["hypothesis"], hypothesis=test["premise"])
    upper = test.iloc[:7].assign(premise=test["premise"].str.upper())
    pd.concat([table, swapped.iloc[10:20], upper]).to_csv(tmp_path / "train.csv", index=False)
    again = load_splits(load_recipe(folder / "recipe.yaml", [f"data.files.train={tmp_path / 'train.csv'}"]).data)
    assert again.leaks["train"] == 7  # a swapped pair is another pair


def test_a_single_text_may_hold_what_separates_the_texts_of_pairs(tmp_path, tiny_bert):
    rows = [{"text": f"a film \x1e plot {index}", "label": LABELS[index % 2]} for index in range(40)]
    for name, some in (("train", rows), ("test", [{**row, "text": "the " + row["text"]} for row in rows])):
        pd.DataFrame(some).to_json(tmp_path / f"{name}.jsonl", orient="records", lines=True)
    files = Files(train=str(tmp_path / "train.jsonl"), test=str(tmp_path / "test.jsonl"))
    texts = texts_of(load_splits(Data(files=files)).test)
    assert set(map(type, texts)) == {str} and len(distill.load(tiny_bert).logits(texts)) == 40
    assert len(distill.load(tiny_bert)(["one \x1e two"])) == 1


@pytest.mark.slow
def test_pairs_are_learned_and_distilled(world):
    for name in ("teacher", "student"):
        metrics = json.loads((world / "out" / name / "metrics.json").read_text())
        assert metrics["test"]["accuracy"] > 0.9  # without knowing which text a word is in: 0.75
        assert metrics["training"]["truncation"]["kept"] == "longest_first"
    report = json.loads((world / "out" / "report" / "report.json").read_text())
    assert {row["role"] for row in report["measurements"]} >= {"baseline", "teacher", "student", "control"}


@pytest.mark.slow
def test_transformers_and_every_format_answer_as_we_do(world):
    test = pd.read_csv(world / "test.csv")
    pairs = list(zip(test["premise"], test["hypothesis"], strict=True))
    student = world / "out" / "student"
    ours = distill.load(student).logits(pairs)
    tokenizer = AutoTokenizer.from_pretrained(student)
    model = AutoModelForSequenceClassification.from_pretrained(student)
    inputs = tokenizer(*map(list, zip(*pairs, strict=True)), padding=True, truncation=True, return_tensors="pt")
    assert inputs["token_type_ids"].any()
    with torch.no_grad():
        theirs = model.eval()(**inputs).logits.numpy() / getattr(model.config, "distill_temperature", 1.0)
    np.testing.assert_array_equal(ours.argmax(axis=1), theirs.argmax(axis=1))
    classify = pipeline("text-classification", model=str(student))
    answers = classify([{"text": first, "text_pair": second} for first, second in pairs])
    assert [answer["label"] for answer in answers] == [LABELS[label] for label in ours.argmax(axis=1)]
    session = onnxruntime.InferenceSession(str(student / "export" / "onnx-fp32" / "model.onnx"))
    assert {item.name for item in session.get_inputs()} == {"input_ids", "attention_mask", "token_type_ids"}
    feed = {name: value.numpy() for name, value in inputs.items()}
    np.testing.assert_allclose(session.run(["logits"], feed)[0], ours, atol=1e-3)
    for name in ("onnx-fp32", "onnx-int8", "torch-fp16"):
        export = distill.load(student / "export" / name)
        assert (export.logits(pairs).argmax(axis=1) == ours.argmax(axis=1)).mean() > 0.9


@pytest.mark.slow
def test_single_texts_are_refused_by_a_model_of_pairs_and_the_other_way_round(world, tiny_bert, tmp_path):
    classifier = distill.load(world / "out" / "student")
    with pytest.raises(ModelError, match="trained on pairs of texts"):
        classifier(["a text"])
    with pytest.raises(TypeError, match="and not both"):
        classifier([("a", "b"), "c"])
    assert len(distill.load(tiny_bert)([("a film", "a plot")])) == 1  # nobody knows what that was trained on


@pytest.mark.slow
def test_predict_reads_two_columns_and_writes_what_can_teach(world, tmp_path):
    student, test = world / "out" / "student", pd.read_csv(world / "test.csv")
    code, shown, _ = run("predict", student, test["premise"][0], test["hypothesis"][0])
    assert code == 0 and f"{test['premise'][0]} | {test['hypothesis'][0]}" in shown
    assert run("predict", student, "one", "two", "three")[0] == 2
    code, shown, _ = run("predict", student, "--file", world / "test.csv")
    assert code == 0 and len(shown.splitlines()) == 100
    (tmp_path / "pairs.txt").write_text("a film\ta plot\nonly one\n")
    code, _, errors = run("predict", student, "--file", tmp_path / "pairs.txt")
    assert code == 2 and "line 2: wants the two texts of a pair" in errors
    train, answers = world / "train.csv", tmp_path / "answers.csv"
    assert run("predict", world / "out" / "teacher", "--file", train, "--output", answers)[0] == 0
    small = make_classifier(tmp_path / "small", num_hidden_layers=1)
    recipe = load_recipe(
        world / "recipe.yaml", [f"student.model={small}", "data.files.transfer=null", "student.control=false"]
    )
    taught = commands.student(recipe, answers, tmp_path / "student", device="cpu", force=True)
    assert taught.is_finished


def test_inspect_shows_pairs(folder):
    code, shown, _ = run("inspect", folder / "recipe.yaml", "--row", "train/3")
    table = pd.read_csv(folder / "train.csv")
    assert code == 0 and f"{table['premise'][3]} | {table['hypothesis'][3]}" in shown
    code, shown, _ = run("inspect", folder / "recipe.yaml")
    assert code == 0 and " | " in shown and "control characters" not in shown


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["data.truncation=tail"], "of a pair the longer text is cut"),
        (["data.text_column=[premise, premise]"], "one column twice"),
        (["data.text_column=[premise, claim]"], "no column 'claim'"),
        (["data.text_column=[premise, hypothesis, label]"], "data.text_column"),
    ],
)
def test_wrong_pairs_are_refused(folder, settings, said):
    code, _, errors = run("inspect", folder / "recipe.yaml", *(word for one in settings for word in ("--set", one)))
    assert code == 2 and said in errors


def test_a_student_of_all_layers_tells_the_texts_apart_as_its_teacher_does(tmp_path):
    teacher = AutoModelForSequenceClassification.from_pretrained(make_classifier(tmp_path / "bert")).eval()
    student = build_from_layers(teacher, 4).eval()
    ids = torch.tensor([[2, 7, 8, 3, 9, 10, 3]])
    for types in ([0] * 7, [0] * 4 + [1] * 3):
        given = {"input_ids": ids, "token_type_ids": torch.tensor([types])}
        torch.testing.assert_close(student(**given).logits, teacher(**given).logits, atol=1e-5, rtol=1e-5)


def test_the_baseline_knows_which_text_a_word_is_in():
    """Also in scripts without spaces, where a character is a word."""
    for first, second in (("good film", "bad plot"), ("今天", "明天")):
        one, other = counts([joined_texts(first, second)]), counts([joined_texts(second, first)])
        assert (one != other).nnz
        shared = set(counts([joined_texts(first, first)]).indices) & set(counts([first]).indices)
        assert shared == set(counts([first]).indices)
    columns = np.unique(counts(["a good film"]).indices).astype(np.int32)
    ngrams = WordNgrams(columns, np.ones(len(columns), np.float32))
    classifier = LinearClassifier(ngrams, np.ones((2, len(columns)), np.float32), np.zeros(2, np.float32), LABELS,
                                  reads="pairs")  # fmt: skip
    assert len(classifier([("a", "b")])) == 1
    with pytest.raises(ModelError, match="trained on pairs of texts"):
        classifier(["a good film"])


def test_a_pair_needs_room_for_both_texts():
    with pytest.raises(DataError, match="leaves no room for two texts"):
        encode(TOKENIZER, [joined_texts("good film", "bad film")], Truncation(1, "longest_first"))
