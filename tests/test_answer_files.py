"""A file of answers as a teacher: what it may look like, what it teaches, and what is refused."""

import json
import shutil

import datasets
import numpy as np
import pandas as pd
import pytest
from conftest import BRIEFLY, LABELS, make_classifier, run, write_reviews
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.special import softmax

from distill import commands
from distill.data.answers import read_answers
from distill.data.splits import load_splits
from distill.errors import DataError, RecipeError, UserError
from distill.recipe.file import load_recipe
from distill.storage.answers import write_table

TEXTS = ["a fine film", "a dull film", "Fine, and dull"]
P = np.array([[0.1, 0.9], [0.75, 0.25], [0.5, 0.5]])


def refused(call):
    with pytest.raises(UserError) as found:
        call()
    return str(found.value)


def read(path, texts=TEXTS):
    """Return the probabilities that a file gives to `texts`."""
    found = read_answers(str(path), ["text"], LABELS)
    return softmax(found.logits[[found.row_of(text) for text in texts]], axis=1)


def write(path, **columns):
    frame = pd.DataFrame({"text": TEXTS, **columns})
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame = frame.map(lambda value: json.dumps(value) if isinstance(value, list | dict) else value)
        frame.to_csv(path, index=False)
    return path


KINDS = {
    "one column for each class": {"Positive": P[:, 1], "other": 7, "negative": P[:, 0]},
    "probabilities": {"probabilities": P.tolist()},
    "probabilities by name": {"probabilities": [dict(zip(LABELS, row, strict=True)) for row in P.tolist()]},
    "logits": {"logits": np.log(P).tolist(), "label": ["negative"] * 3},
    "log-probabilities": {
        "top_logprobs": [
            {"positive": np.log(0.45), "The": np.log(0.5)},  # 0.05 is left for the other class
            {" Negative": np.log(0.5), "negative": np.log(0.25)},
            {"negative": np.log(0.5), "positive": np.log(0.5)},
        ]
    },
    "log-probabilities as chat APIs give them": {
        "top_logprobs": [
            [{"token": name, "logprob": number, "bytes": [1]} for name, number in zip(LABELS, row, strict=True)]
            for row in np.log(P).tolist()
        ]
    },
    "votes": {"votes": [["positive"] * 9 + ["negative"], ["negative", "Negative", "positive", "negative"], [0, 1]]},
}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_answers_is_read_from_every_format(tmp_path, kind, suffix):
    columns = KINDS[kind]
    if kind == "votes":  # Parquet has lists of one type
        columns = {"votes": [[str(vote) for vote in row] for row in columns["votes"][:2]] + [["positive", "negative"]]}
    np.testing.assert_allclose(read(write(tmp_path / f"answers{suffix}", **columns)), P, atol=1e-5)


def test_votes_may_be_in_columns_and_be_absent(tmp_path):
    path = write(tmp_path / "numbers.csv", vote_1=["1", "0", "1"], vote_ann=["1", "", "0"], votes_total=["2", "1", "2"])
    np.testing.assert_allclose(read(path), [[0, 1], [1, 0], [0.5, 0.5]], atol=1e-5)
    path = write(tmp_path / "words.csv", vote_1=["positive", "negative", "positive"], vote_2=["", "positive", ""])
    np.testing.assert_allclose(read(path), [[0, 1], [0.5, 0.5], [0, 1]], atol=1e-5)


def test_numbers_of_a_column_whose_type_names_the_classes_stand_for_those_names(tmp_path):
    kind = datasets.ClassLabel(names=LABELS[::-1])
    for name, values, feature in (("vote_1", [0, 1, 0], kind), ("votes", [[0], [1], [0]], datasets.List(kind))):
        features = datasets.Features({"text": datasets.Value("string"), name: feature})
        path = tmp_path / f"{name}.parquet"
        datasets.Dataset.from_dict({"text": TEXTS, name: values}, features=features).to_parquet(path)
        np.testing.assert_allclose(read(path), [[0, 1], [1, 0], [0, 1]], atol=1e-5)


def test_a_list_without_names_needs_an_order_that_somebody_chose(tmp_path):
    path = write(tmp_path / "answers.jsonl", probabilities=P.tolist())
    with pytest.raises(DataError, match=r"data\.label_names must give their order"):
        read_answers(str(path), ["text"], LABELS, is_ordered=False)
    path = write(tmp_path / "named.jsonl", **KINDS["probabilities by name"])
    assert read_answers(str(path), ["text"], LABELS, is_ordered=False).logits.shape == (3, 2)


def test_classes_that_differ_only_in_case_keep_their_answers(tmp_path):
    path = write(tmp_path / "answers.jsonl", top_logprobs=[{"US": np.log(0.9)}, {"us": np.log(0.75)}, {"US": 0.0}])
    found = read_answers(str(path), ["text"], ["US", "us"])
    np.testing.assert_allclose(softmax(found.logits, axis=1)[:2], [[0.9, 0.1], [0.25, 0.75]], atol=1e-5)


def test_columns_of_texts_are_no_answers_even_if_they_are_named_so(tmp_path):
    path = tmp_path / "answers.csv"
    path.write_text("vote_text,negative,positive\na,1,0\n")
    assert read_answers(str(path), ["vote_text"], LABELS).columns == ("negative", "positive")
    path.write_text('text,label,score,logits\na,label,0.5,"{""label"": 1, ""other"": 0}"\n')
    assert read_answers(str(path), ["text"], ["label", "other"]).columns == ("logits",)


def test_a_column_that_comes_late_in_json_is_read_too(tmp_path):
    path = tmp_path / "answers.jsonl"
    rows = [{"text": f"text {index}", "vote_1": "positive"} for index in range(1_500)]
    rows[-1]["vote_2"] = "negative"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_answers(str(path), ["text"], LABELS)
    assert found.columns == ("vote_1", "vote_2")
    assert softmax(found.logits[-1]).tolist() == pytest.approx([0.5, 0.5])


def test_rows_without_a_text_are_left_out_and_said(tmp_path, caplog):
    path = tmp_path / "answers.csv"
    path.write_text("text,negative,positive\na,1,0\n  ,0.5,0.5\n")
    assert len(read_answers(str(path), ["text"], LABELS).logits) == 1
    assert "1 rows without a text are left out" in caplog.text


@given(logits=st.lists(st.lists(st.floats(-80, 80, width=32), min_size=2, max_size=2), min_size=1, max_size=5))
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_logits_keep_every_bit(tmp_path_factory, suffix, logits):
    path = tmp_path_factory.mktemp("bits") / f"answers{suffix}"
    texts = [f'text {index}, "quoted"\nand more' for index in range(len(logits))]
    wanted = np.array(logits, np.float32)
    write_table(path, ["text"], LABELS, [(texts, wanted)])
    found = read_answers(str(path), ["text"], LABELS)
    np.testing.assert_array_equal(found.logits[[found.row_of(text) for text in texts]], wanted)


def test_a_text_is_found_as_it_is_written_or_else_apart_from_case_and_white_space(tmp_path):
    path = tmp_path / "answers.csv"
    path.write_text("text,negative,positive\nFine film,1,0\nfine film,0,1\nDull  film,1,0\n")
    found = read_answers(str(path), ["text"], LABELS)
    assert [found.row_of(text) for text in ("Fine film", "fine film", "dull film", "FINE FILM", "none")] == [
        0, 1, 2, None, None,
    ]  # fmt: skip


def test_a_file_may_call_the_classes_otherwise(tmp_path):
    path = write(tmp_path / "answers.csv", POS=P[:, 1], neg=P[:, 0])
    found = read_answers(str(path), ["text"], LABELS, {"pos": "positive", "NEG": "negative"})
    np.testing.assert_allclose(softmax(found.logits, axis=1), P, atol=1e-5)
    votes = write(tmp_path / "votes.csv", votes=["POS", "neg", "pos"])
    found = read_answers(str(votes), ["text"], LABELS, {"pos": "positive", "NEG": "negative"})
    assert found.logits.argmax(axis=1).tolist() == [1, 0, 1]


REFUSED = {
    "negative": ("negative,positive\na,1.2,-0.2\nb,0.5,0.5", "line 2: a negative probability: -0.2"),
    "sum": ("negative,positive\na,0.2,0.2\nb,0.5,0.5\nc,1,1", "line 2: probabilities that do not add up to 1: 0.4 (2"),
    "empty cell": ("negative,positive\na,0.2,\nb,0.5,0.5", "line 2: probabilities are missing"),
    "word": ("negative,positive\na,high,low\nb,0.5,0.5", "line 2: probabilities that are not numbers: 'high'"),
    "infinite": ("logits\na,\"[1, 1e999]\"", "line 2: logits that are not finite: inf"),
    "three": ("logits\na,\"[1, 2, 3]\"", "line 2: logits for another number of classes: 3, not 2"),
    "no list": ("logits\na,0.3", "line 2: logits are not a list: '0.3'"),
    "twice": ("negative,positive\na,1,0\nb,0,1\na,0,1", "line 4: a text with two answers: the other is in line 2"),
    "counts of votes": ("vote_negative,vote_positive\na,1,0", "votes of a class, but a column of votes holds"),
    "an object with a name twice": (
        "probabilities\na,\"{\"\"negative\"\": 0.9, \"\"negative\"\": 0.3}\"", "line 2: an object with a name twice"
    ),
    "a vote that is an object with a name twice": (
        "vote_1\na,\"{\"\"x\"\": 1, \"\"x\"\": 2}\"\nb,positive", "line 2: an object with a name twice"
    ),
    "two names for one class": (
        "probabilities\na,\"{\"\"negative\"\": 0.1, \"\"NEGATIVE\"\": 0.3, \"\"positive\"\": 0.6}\"",
        "line 2: probabilities with two names for one class: negative",
    ),
    "too large": ("logits\na,\"[1e39, 0]\"", "line 2: logits that are not finite in 32 bits"),
    "far too large": (f"logits\na,\"[1{'0' * 400}, 0]\"", "line 2: logits that are not numbers"),
    "never": ("top_logprobs\na,\"{\"\"negative\"\": -9999, \"\"positive\"\": -9999}\"", "top_logprobs without a class"),
    "a list as token": (
        "top_logprobs\na,\"[{\"\"token\"\": [1], \"\"logprob\"\": -0.1}]\"", "line 2: top_logprobs without a class"
    ),
    "deep": (f"logits\na,\"{'[' * 100_000}\"", "line 2: logits are not a list"),
    "half": ("negative\na,1", "has columns of some classes, but none of 'positive'"),
    "nothing": ("label\na,positive", "has only label; a file of answers wants one column for each class"),
    "two kinds": ("logits,votes\na,\"[1, 2]\",positive", "has logits and votes; a file of answers wants one column"),
    "a class twice": ("negative,Negative,positive\na,1,0,0", "'negative' and 'Negative' are of one class"),
    "no vote": ("votes\na,\nb,positive", "line 2: votes are missing"),
    "a strange vote": ("votes\na,maybe\nb,positive", "line 2: a vote that is no class: 'maybe' is not one of negative"),
    "a sure log": ("top_logprobs\na,\"{\"\"positive\"\": 0.5}\"", "line 2: a log-probability above 0: 0.5"),
    "no class": ("top_logprobs\na,\"{\"\"The\"\": -0.5}\"", "line 2: top_logprobs without a class: 'The'"),
    "other names": (
        "probabilities\na,\"{\"\"good\"\": 0.5, \"\"bad\"\": 0.5}\"", "line 2: probabilities of 'good': it is not one"
    ),
    "no rows": ("negative,positive", "has no rows"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_file_is_refused_with_its_row(tmp_path, case):
    content, said = REFUSED[case]
    path = tmp_path / "answers.csv"
    path.write_text(f"text,{content}\n")
    with pytest.raises(DataError) as found:
        read_answers(str(path), ["text"], LABELS)
    assert len(found.value.problems) == 1 and said in found.value.problems[0], found.value.problems


def test_each_kind_of_fault_gets_a_line(tmp_path):
    path = tmp_path / "answers.csv"
    path.write_text("text,negative,positive\na,1.5,-0.5\nb,0.5,\nc,0.1,0.1\nd,-1,2\n")
    with pytest.raises(DataError) as found:
        read_answers(str(path), ["text"], LABELS)
    assert [problem.partition(": ")[2] for problem in found.value.problems] == [
        "line 2: a negative probability: -0.5 (2 such rows)",
        "line 3: probabilities are missing",
        "line 4: probabilities that do not add up to 1: 0.2",
    ]


@pytest.fixture(scope="module")
def world(tmp_path_factory, data, tiny_bert):
    """A trained teacher, its recipe, and a file with its answers to all texts of the recipe."""
    folder = tmp_path_factory.mktemp("answers")
    files = {"train": str(data / "train.csv"), "test": str(data / "test.csv")}
    for name, seed in (("transfer", 5), ("validation", 6)):
        write_reviews(folder / f"{name}.csv", 60, seed=seed)
        files[name] = str(folder / f"{name}.csv")
    recipe = {
        "data": {"files": files, "label_names": LABELS, "max_tokens": 32},
        "teacher": {"model": str(tiny_bert), "pretrained": False, "training": {**BRIEFLY, "num_train_epochs": 4}},
        "student": {
            "model": str(make_classifier(folder / "small", num_hidden_layers=1)), "control": True, "training": BRIEFLY,
        },
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    commands.teacher(load_recipe(folder / "recipe.yaml"), folder / "teacher", device="cpu")
    tables = []
    for name, path in files.items():  # one by one, as the cache does: the last bits of a logit depend on the batch
        commands.write_answers(
            folder / "teacher", iter(pd.read_csv(path)["text"]), folder / f"{name}.parquet", device="cpu"
        )
        tables.append(pd.read_parquet(folder / f"{name}.parquet"))
    pd.concat(tables).to_parquet(folder / "answers.parquet")
    return folder


def distil(world, output, teacher, *overrides, **options):
    return commands.student(load_recipe(world / "recipe.yaml", overrides), teacher, output, device="cpu", **options)


def test_a_teachers_answers_in_a_file_teach_as_the_teacher_does(world, tmp_path):
    from_model = distil(world, tmp_path / "a", world / "teacher")
    from_file = distil(world, tmp_path / "b", world / "answers.parquet")
    ours, theirs = (load_file(one.path / "model.safetensors") for one in (from_model, from_file))
    assert all((ours[name] == theirs[name]).all() for name in ours)
    (known,) = from_file.read_manifest()["parents"]["answer_files"]
    teacher = json.loads((world / "teacher" / "metrics.json").read_text())
    assert known["test"] == {"examples": teacher["test"]["examples"], "accuracy": teacher["test"]["accuracy"]}
    said = f"accuracy is {known['validation']['accuracy']:.4f} on"
    assert said in from_file.card.read_text() and "answers.parquet" in from_file.card.read_text()
    report = commands.report([tmp_path / "b", tmp_path / "b-control"], tmp_path / "report", device="cpu")
    assert any(said in note and "column logits" in note for note in report["notes"])
    assert distil(world, tmp_path / "b", world / "answers.parquet", resume=True).is_finished  # nothing left to do
    changed = pd.read_parquet(world / "answers.parquet")
    changed.iloc[::-1].to_parquet(tmp_path / "answers.parquet")
    assert "another teacher" in refused(
        lambda: distil(world, tmp_path / "b", tmp_path / "answers.parquet", resume=True)
    )


def test_a_file_and_a_model_may_teach_together(world, tmp_path):
    layers = ["student.model=null", "student.layers=1", "student.control=false"]
    shutil.copytree(world / "teacher", tmp_path / "copy")
    mixed = distil(world, tmp_path / "mixed", [world / "answers.parquet", world / "teacher"], *layers)
    models = distil(world, tmp_path / "models", [tmp_path / "copy", world / "teacher"], *layers)
    ours, theirs = (load_file(one.path / "model.safetensors") for one in (mixed, models))
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_an_n_gram_student_of_a_file_names_its_tokenizer(world, tmp_path, tiny_bert):
    settings = ["student.model=null", "student.control=false", "student.ngrams={table: 512, width: 8}"]
    with pytest.raises(RecipeError, match=r"student\.ngrams\.tokenizer: missing"):
        distil(world, tmp_path / "a", world / "answers.parquet", *settings)
    named = [*settings, f"student.ngrams.tokenizer={tiny_bert}"]
    run = distil(world, tmp_path / "a", world / "answers.parquet", *named)
    assert run.is_finished and str(tiny_bert) not in run.card.read_text()


def test_what_a_file_cannot_give_is_refused(world, tmp_path):
    file = world / "answers.parquet"
    layers = ["student.model=null", "student.layers=1"]
    assert "cannot be made of a teacher that is a file" in refused(lambda: distil(world, tmp_path / "a", file, *layers))
    hidden = ["student.loss.hidden_states={}"]
    assert "need a model as teacher" in refused(lambda: distil(world, tmp_path / "a", file, *hidden))
    assert "no such file" in refused(lambda: distil(world, tmp_path / "a", world / "nothing.parquet"))
    few = pd.read_parquet(file)
    few.iloc[3:].to_parquet(tmp_path / "few.parquet")
    said = refused(lambda: distil(world, tmp_path / "a", tmp_path / "few.parquet"))
    assert "few.parquet: has no answer for" in said and "train/" in said and "leave them out of train" in said
    assert not (tmp_path / "a" / "model.safetensors").exists()
    flipped = pd.read_parquet(file)
    flipped["logits"] = [{"negative": row["positive"], "positive": row["negative"]} for row in flipped["logits"]]
    flipped.to_parquet(tmp_path / "flipped.parquet")
    assert "no better than always answering the commonest class" in refused(
        lambda: distil(world, tmp_path / "a", tmp_path / "flipped.parquet", "student.control=false")
    )


def test_a_file_without_answers_to_validation_is_judged_on_train(world, tmp_path):
    texts = pd.read_csv(world / "validation.csv")["text"]
    answers = pd.read_parquet(world / "answers.parquet")
    answers = answers[~answers["text"].isin(texts)]
    answers["logits"] = [{"negative": row["positive"], "positive": row["negative"]} for row in answers["logits"]]
    answers.to_parquet(tmp_path / "swapped.parquet")
    said = refused(lambda: distil(world, tmp_path / "a", tmp_path / "swapped.parquet", "student.control=false"))
    assert "train accuracy" in said and "no better than always answering the commonest class" in said


def test_texts_of_the_file_alone_become_transfer_texts_if_the_recipe_names_it(world, tmp_path):
    data = load_recipe(
        world / "recipe.yaml", [f"data.files.transfer={world / 'answers.parquet'}", "data.text_column=text"]
    ).data
    splits = load_splits(data)
    assert len(splits.transfer) == 60  # those of train, validation and test are not read twice


def test_inspect_reviews_the_answers(world, tmp_path):
    answers = pd.read_parquet(world / "answers.parquet")
    recipe = str(world / "recipe.yaml")
    found = json.loads(run("inspect", recipe, "--teacher", world / "answers.parquet", "--json")[1])["teacher"]
    teacher = json.loads((world / "teacher" / "metrics.json").read_text())
    assert found["splits"]["test"]["accuracy"] == pytest.approx(teacher["test"]["accuracy"])
    assert found["splits"]["test"]["calibration_error"] == pytest.approx(teacher["test"]["ece"], abs=1e-6)
    assert found["splits"]["transfer"]["answered"] == 60 and "accuracy" not in found["splits"]["transfer"]
    wrong = pd.read_csv(json.loads((world / "recipe.yaml").read_text())["data"]["files"]["train"]).iloc[0]
    sure = {"negative": 9.0, "positive": -9.0} if wrong["label"] == "positive" else {"negative": -9.0, "positive": 9.0}
    answers["logits"] = [
        sure if text == wrong["text"] else row for text, row in zip(answers["text"], answers["logits"], strict=True)
    ]
    answers.assign(logits=[{"negative": 0.0, "positive": 0.01}] * len(answers)).to_parquet(tmp_path / "even.parquet")
    answers.to_parquet(tmp_path / "wrong.parquet")
    _, shown, _ = run("inspect", recipe, "--teacher", tmp_path / "wrong.parquet", "--output", tmp_path / "page")
    assert f"train/0: labelled {wrong['label']}, but the teacher says" in shown
    page = (tmp_path / "page" / "inspect.html").read_text()
    assert "train/0: labelled" in page and "Answers of" in page
    _, shown, _ = run("inspect", recipe, "--teacher", tmp_path / "even.parquet")
    assert "100% of the teacher's answers to train are nearly even" in shown
    from_model = json.loads(run("inspect", recipe, "--teacher", world / "teacher", "--json")[1])["teacher"]
    for name in ("accuracy", "calibration_error"):
        assert from_model["splits"]["validation"][name] == pytest.approx(found["splits"]["validation"][name])
    assert "test" not in from_model["splits"]


def test_inspect_shows_one_row(world):
    recipe = str(world / "recipe.yaml")
    train = pd.read_csv(json.loads((world / "recipe.yaml").read_text())["data"]["files"]["train"])
    _, shown, _ = run("inspect", recipe, "--row", "17")
    assert shown.startswith("train/17: in train, label") and train["text"][17] in shown
    found = json.loads(run("inspect", recipe, "--row", "transfer/3", "--json")[1])
    assert (found["split"], found["label"]) == ("transfer", None)
    code, _, errors = run("inspect", recipe, "--row", "99999")
    assert code == 2 and "train/99999 is in no split" in errors
