"""Texts in any script, of any length and of no sense: an answer each, in order, whatever company they are in."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
from conftest import BAD, FILLER, GOOD, make_classifier, run, write_reviews
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import distill
from distill.data.encoding import Truncation
from distill.training.tokens import tokenise

ODD = [
    "", " ", "\n\t", "\0", "\x07\x1b[31mred", "a good film", "GOOD " * 20_000, "x" * 100_000,
    "\u597d\u7535\u5f71\uff0c\u597d", "\u0641\u064a\u0644\u0645", "\u05e1\u05e8\u05d8",
    "\u0905\u091a\u094d\u091b\u0940 \u092b\u093f\u0932\u094d\u092e", "\uff11\uff12", "\ufeffgood", "\U0010ffff",
    "\U0001f44d\U0001f3fd\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u202egood\u202c", "e" + "\u0301" * 500,
    "\ud800", "a\udfffb", "[SEP] [CLS] [MASK]", "<script>alert(1)</script>", "good\r\nfilm",
]  # fmt: skip


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory, data):
    """The same classifier in torch, ONNX Runtime and, where it is installed, OpenVINO."""
    folder = tmp_path_factory.mktemp("classifiers")
    model = make_classifier(folder / "model", words=[*FILLER, *GOOD, *BAD, *"abcdefghijklmnopqrstuvwxyz"])
    openvino = ["openvino-bf16"] if importlib.util.find_spec("openvino") else []
    recipe = {
        "data": {"files": {"train": str(data / "train.csv"), "test": str(data / "test.csv")}, "max_tokens": 32},
        "teacher": {"model": str(model)},
        "export": {"formats": ["onnx-fp32", *openvino], "max_accuracy_drop": 1.0, "min_agreement": 0.0},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    code, _, err = run("export", model, "--recipe", folder / "recipe.yaml", "--output", folder / "export")
    assert code == 0, err
    return [
        distill.load(model, "cpu"),
        *(distill.load(folder / "export" / name) for name in recipe["export"]["formats"]),
    ]


def test_odd_texts_are_answered_and_in_order(classifiers, record_property):
    for classifier in classifiers:
        answers = classifier.probabilities(ODD)
        assert answers.shape == (len(ODD), 2) and np.isfinite(answers).all()
        np.testing.assert_allclose(answers[::-1], classifier.probabilities(ODD[::-1]), atol=1e-5)
        for text, answer in zip(ODD, answers, strict=True):
            np.testing.assert_allclose(classifier.probabilities([text])[0], answer, atol=1e-5)
    record_property("odd texts answered", len(ODD) * len(classifiers))


def test_a_text_of_no_tokens_is_answered_alone_and_in_company(tiny_bert, tmp_path):
    """A tokenizer that adds no special tokens makes nothing of an empty text."""
    shutil.copytree(tiny_bert, tmp_path / "model")
    tokenizer = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}))
    classifier = distill.load(tmp_path / "model", "cpu")
    answers = classifier.probabilities(["", "a good film", " "])
    assert np.isfinite(answers).all()
    np.testing.assert_allclose(classifier.probabilities([""])[0], answers[0], atol=1e-5)
    rows = Dataset.from_dict({"text": [" ", "good"], "label": [0, 1]})
    assert tokenise(rows, classifier.tokenizer, Truncation(8))["length"][:] == [1, 1]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(), max_size=60), min_size=1, max_size=8))
def test_any_texts_are_answered_and_in_order(texts, classifiers):
    for classifier in classifiers:
        answers = classifier.probabilities(texts)
        alone = np.concatenate([classifier.probabilities([text]) for text in texts])
        np.testing.assert_allclose(answers, alone, atol=1e-5)


def test_the_answers_of_a_file_are_a_line_each_and_the_whole_result_is_one_line(tmp_path, tiny_bert):
    rows = write_reviews(tmp_path / "texts.csv", 50, seed=3)
    code, out, _ = run("predict", tiny_bert, "--file", tmp_path / "texts.csv")
    assert code == 0 and [line.split("\t")[2] for line in out.splitlines()] == [text for text, _ in rows]
    code, line, _ = run("predict", tiny_bert, "--file", tmp_path / "texts.csv", "--json")
    answers = json.loads(line)
    assert code == 0 and line.count("\n") == 1 and len(answers) == 50
    assert [f"{answer['score']:.4f}" for answer in answers] == [line.split("\t")[1] for line in out.splitlines()]
    (tmp_path / "none.txt").write_text("")
    assert run("predict", tiny_bert, "--file", tmp_path / "none.txt", "--json")[1] == "[]\n"


def test_no_text_steers_the_terminal(tmp_path, tiny_bert):
    (tmp_path / "texts.txt").write_text("a\x1b]0;taken\x07 good\x9b2J film\n")
    code, out, _ = run("predict", tiny_bert, "--file", tmp_path / "texts.txt")
    assert code == 0 and not [c for c in out.rstrip("\n") if (ord(c) < 32 and c != "\t") or 127 <= ord(c) < 160]
    assert r"a\x1b]0;taken\x07 good\x9b2J film" in out


FEW_AND_MANY = (20_000, 200_000)  # either are many more than are held at once


@pytest.mark.slow
def test_ever_more_texts_of_a_file_are_answered_in_bounded_memory(tmp_path, record_property):
    """The peak of ten times as many texts is no more than that of few, but for what the allocator keeps."""
    import subprocess
    import sys

    model = make_classifier(tmp_path / "model", num_hidden_layers=1, hidden_size=8, intermediate_size=8)
    script = (
        "import resource, sys\nfrom distill.cli import main\nsys.argv = ['distill', 'predict', *sys.argv[1:]]\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n"
    )
    peaks = {}
    for count in FEW_AND_MANY:
        with open(tmp_path / "texts.txt", "w") as file:
            file.writelines(f"a good film {index % 97}\n" for index in range(count))
        with open(tmp_path / "out", "wb") as out:
            done = subprocess.run(
                [sys.executable, "-c", script, str(model), "--file", str(tmp_path / "texts.txt")],
                stdout=out, stderr=subprocess.PIPE, text=True, timeout=1_800,
            )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2_000:]
        peaks[count] = int(done.stderr.split()[-1]) / 1e6
        with open(tmp_path / "out", encoding="utf-8") as out:
            for index, line in enumerate(out):
                assert line.rstrip("\n").endswith(f"\ta good film {index % 97}")
        assert index == count - 1
    assert peaks[max(peaks)] < 1.1 * peaks[min(peaks)], peaks
    record_property("texts through predict", max(peaks))
    record_property("peak memory GB at 20,000 and 200,000", " and ".join(f"{peak:.2f}" for peak in peaks.values()))
