"""Which part of a long text a model reads: the same in training, in what it saves, and in its exports."""

import csv
import json
import random

import numpy as np
import pytest
from conftest import BAD, FILLER, GOOD, LABELS, check_refused, make_classifier, make_tokenizer, run
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import distill
from distill.data.encoding import NO_LIMIT, Truncation, cut_of, encode, excerpts
from distill.models.truncation import CONFIG_KEY
from distill.storage.files import read_json

WORDS = FILLER + GOOD + BAD
PARTS = ("head", "tail", "head_tail")
TEXTS = st.lists(st.lists(st.sampled_from([*WORDS, "unseen", "[SEP]"]), max_size=60).map(" ".join), max_size=8)


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.integers(3, 70))
def test_beginning_and_end_are_cut_as_transformers_cuts_them(texts, max_tokens):
    tokenizer = make_tokenizer(WORDS)
    for part, side in (("head", "right"), ("tail", "left")):
        ids, lengths, _ = encode(tokenizer, texts, Truncation(max_tokens, part))
        tokenizer.truncation_side = side
        theirs = tokenizer(texts, truncation=True, max_length=max_tokens)["input_ids"] if texts else []
        assert ids == theirs
        assert lengths == [len(row) for row in (tokenizer(texts, truncation=False)["input_ids"] if texts else [])]


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.integers(3, 70), st.sampled_from(PARTS))
def test_what_is_kept_is_the_ends_of_the_text_between_its_special_tokens(texts, max_tokens, part):
    tokenizer = make_tokenizer(WORDS)
    truncation = Truncation(max_tokens, part)
    whole = encode(tokenizer, texts, Truncation(10_000)).ids
    ids, lengths, _ = encode(tokenizer, texts, truncation)
    head, tail = truncation.ends(max_tokens - 2)
    for full, kept, length, excerpt in zip(whole, ids, lengths, excerpts(tokenizer, texts, truncation), strict=True):
        assert length == len(full) and len(kept) == min(length, max_tokens)
        inner = full[1:-1]
        expected = inner if length <= max_tokens else inner[:head] + inner[len(inner) - tail :]
        assert kept == [full[0], *expected, full[-1]]
        assert encode(tokenizer, [excerpt], Truncation(10_000)).ids == [kept]  # words are tokens here


def test_head_and_tail_are_shared_as_in_the_paper():
    assert Truncation(512, "head_tail").ends(510) == (128, 382)
    assert Truncation(128, "head_tail").ends(126) == (32, 94)


def test_a_cut_counts_texts_and_tokens():
    cut = cut_of([10, 30, 10, 50], 20)
    assert (cut.texts, cut.tokens, cut.matters) == (0.5, 0.4, True)
    assert not cut_of([10, 20], 20).matters


@pytest.fixture
def verdicts(tmp_path, tiny_bert):
    """A recipe for reviews that end with their verdict, and begin with it or, one in eight, with the other one."""
    rng = random.Random(0)
    for name, count in (("train", 240), ("test", 60)):
        rows = []
        for index in range(count):
            sides = (index + (index % 16 < 2)) % 2, index % 2  # of the beginning and of the end
            begin, end = (" ".join(rng.choices((BAD, GOOD)[side], k=5)) for side in sides)
            rows.append((f"{begin} {' '.join(rng.choices(FILLER, k=30))} {end}", LABELS[index % 2]))
        with open(tmp_path / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    training = {"bf16": False, "num_train_epochs": 6, "learning_rate": 3e-3, "per_device_train_batch_size": 16}
    recipe = {
        "data": {
            "files": {name: str(tmp_path / f"{name}.csv") for name in ("train", "test")}, "label_names": LABELS,
            "max_tokens": 16, "validation_fraction": 0.2,
        },
        "teacher": {"model": str(tiny_bert), "pretrained": False, "output": str(tmp_path / "teacher"),
                    "training": training},
        "student": {"layers": 2, "output": str(tmp_path / "student"), "training": training},
        "export": {"formats": ["onnx-fp32", "torch-fp16"]},
        "benchmark": {"shapes": ["1x8"], "rounds": 5, "threads": 1},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    return tmp_path / "recipe.yaml"


def reads(classifier):
    """The parts of a text that change a classifier's answer: (beginning, middle, end)."""
    middle = " ".join(["the"] * 40)
    base, *changed = classifier.logits(
        [f"good {middle} good", f"bad {middle} good", f"good {middle} bad {middle} good", f"good {middle} bad"]
    )
    return tuple(bool(np.abs(row - base).max() > 1e-6) for row in changed)


READS = {"head": (True, False, False), "tail": (False, False, True), "head_tail": (True, False, True)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "expected"),
    READS.items(),
)
def test_a_run_and_its_exports_read_what_the_recipe_says(verdicts, part, expected):
    folder, changes = verdicts.parent, ("--set", f"data.truncation={part}", "--set", "baseline=false")
    code, _, err = run("run", verdicts, "--output", folder / "all", *changes)
    assert code == 0, err
    assert "100% of the training texts are longer" in err and "`distill inspect RECIPE` shows" in err
    for name in ("teacher", "student"):
        assert read_json(folder / "all" / name / "config.json")[CONFIG_KEY] == part
        assert reads(distill.load(folder / "all" / name, "cpu")) == expected
        metrics = read_json(folder / "all" / name / "metrics.json")
        found = metrics["training"]["truncation"]
        assert found == {"max_tokens": 16, "kept": part, "texts_cut": 1.0, "tokens_cut": pytest.approx(1 - 16 / 42)}
        right = metrics["test"]["accuracy"]
        assert (right < 0.95) if part == "head" else (right >= 0.95), right
    words = {"head": "the first 16", "tail": "the last 16", "head_tail": "a quarter from its beginning"}[part]
    assert words in (folder / "all" / "student" / "README.md").read_text()
    report = read_json(folder / "all" / "report" / "report.json")
    (note,) = [note for note in report["notes"] if "cut off" in note]
    assert "The teacher and the student read" in note and words in note and "62% of all tokens" in note
    for name in ("onnx-fp32", "torch-fp16"):
        export = next((folder / "all").rglob(f"{name}/config.json")).parent
        assert reads(distill.load(export, "cpu")) == expected
        assert words in (export / "README.md").read_text()
    # What transformers does with the folder, as far as it can.
    tokenizer = AutoTokenizer.from_pretrained(folder / "all" / "student")
    text = "good " + "the " * 40 + "bad"
    ids = tokenizer(text, truncation=True)["input_ids"]
    if part != "head_tail":
        assert ids == encode(tokenizer, [text], Truncation(16, part))[0][0]


def test_inspect_shows_what_a_linear_model_loses(verdicts):
    code, out, err = run("inspect", verdicts, "--json")
    assert code == 0, err
    found = {row["part"]: row["accuracy"] for row in json.loads(out)["accuracy_by_part"]}
    assert list(found) == ["whole", *PARTS]
    assert found["head"] < 0.95 < min(found["whole"], found["tail"], found["head_tail"])
    code, out, err = run("inspect", verdicts, "--set", "data.max_tokens=44")
    assert code == 0 and "what cutting may cost" not in out
    code, out, err = run("inspect", verdicts, "--set", "data.truncation=tail")
    assert "tail (this recipe)" in out and "a model reads the last 16 tokens of a text" in out


def test_a_model_of_others_is_cut_on_its_tokenizers_side(tmp_path):
    folder = make_classifier(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.init_kwargs["truncation_side"] = tokenizer.truncation_side = "left"
    tokenizer.model_max_length = 16
    tokenizer.save_pretrained(folder)
    assert reads(distill.load(folder)) == (False, False, True)


def test_a_foreign_teacher_that_is_cut_on_the_left_counts_as_one_that_reads_the_tail(verdicts):
    folder = make_classifier(verdicts.parent / "foreign")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.init_kwargs["truncation_side"] = tokenizer.truncation_side = "left"
    tokenizer.save_pretrained(folder)
    check_refused(
        folder, ["data.truncation: head, but"], "student", verdicts, "--teacher", folder, "--force",
        "--set", "student.loss.hidden_states={}",
    )  # fmt: skip


def test_a_model_without_a_limit_reads_all_of_a_text():
    assert str(Truncation(NO_LIMIT)) == "all of a text"


def test_an_unknown_part_is_refused(tmp_path, recipe_path, tiny_bert):
    check_refused(
        tmp_path, ["data.truncation"], "teacher", recipe_path, "--set", "data.truncation=middle",
    )  # fmt: skip
    folder = make_classifier(tmp_path / "model")
    settings = read_json(folder / "config.json")
    for value in ("middle", 3, ["head"]):
        (folder / "config.json").write_text(json.dumps(settings | {CONFIG_KEY: value}))
        check_refused(
            folder,
            ["config.json: distill_truncation must be one of head, tail, head_tail"],
            "predict",
            folder,
            "a text",
        )


def test_a_teacher_that_runs_beside_the_student_must_read_the_same_part(verdicts):
    folder = verdicts.parent
    code, _, err = run(
        "teacher", verdicts, "--set", "data.truncation=tail", "--set", "teacher.training.num_train_epochs=1"
    )
    assert code == 0, err
    check_refused(
        folder, ["data.truncation: head_tail, but"], "student", verdicts, "--teacher", folder / "teacher",
        "--set", "data.truncation=head_tail", "--set", "student.loss.hidden_states={}",
    )  # fmt: skip
