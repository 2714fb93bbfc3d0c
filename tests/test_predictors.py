import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
import torch
from conftest import FILLER, LABELS, make_classifier, run
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import distill
from distill.errors import DeviceError, ModelError
from distill.inference.classifier import pack, pad
from distill.inference.runtimes import import_openvino
from distill.models.loading import divide_logits
from distill.storage.contents import text_columns_of

TEXTS = [
    "good film", "the plot was bad and the cast was awful " * 5, "", "it is really very fine", "good " * 200, "superb",
    "the music of this film was lovely", "bad", "unknownword", "a a a a a",
]  # fmt: skip


def test_answers_do_not_depend_on_the_company_a_text_is_in(any_classifier):
    classifier = distill.load(any_classifier, "cpu")
    alone = np.concatenate([classifier.logits([text]) for text in TEXTS])
    together = classifier.logits(TEXTS)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(classifier.logits(TEXTS[::-1])[::-1], together, atol=1e-5)
    assert np.ptp(alone[:, 0]) > 0.01  # the texts do differ


def test_answers_equal_those_of_the_transformers_pipeline(any_classifier):
    model = AutoModelForSequenceClassification.from_pretrained(any_classifier)
    theirs = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(any_classifier))
    for ours, expected in zip(
        distill.load(any_classifier, "cpu")(TEXTS), theirs(TEXTS, truncation=True, max_length=64), strict=True
    ):
        assert ours["label"] == expected["label"]
        assert ours["score"] == pytest.approx(expected["score"], abs=1e-5)


def test_probabilities_sum_to_one(tiny_bert):
    probabilities = distill.load(tiny_bert).probabilities(TEXTS)
    assert probabilities.shape == (len(TEXTS), 2) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_no_texts_give_no_answers(tiny_bert):
    classifier = distill.load(tiny_bert)
    assert classifier([]) == []
    assert classifier.probabilities([]).shape == (0, 2)


def test_progress_counts_every_text(tiny_bert):
    done = []
    distill.load(tiny_bert).logits(TEXTS, progress=done.append)
    assert sum(done) == len(TEXTS)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 600), max_size=60), st.integers(1, 700))
def test_packing_places_every_text_once_within_the_budget(lengths, budget):
    batches = [list(batch) for batch in pack(lengths, budget)]
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
        assert lengths[batch[0]] == longest  # as those who cut by it take for granted
    longests = [max(lengths[row] for row in batch) for batch in batches]
    assert longests == sorted(longests, reverse=True)
    for batch, longest in list(zip(batches, longests, strict=True))[:-1]:  # no text of the next would fit in too
        assert (len(batch) + 1) * longest > budget


def test_padding_is_masked_and_on_the_right():
    ids, mask = pad([[5, 6, 7], [8]], pad_token_id=1)
    assert ids.tolist() == [[5, 6, 7], [8, 1, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_texts_are_cut_at_the_tokenizers_own_limit(tmp_path):
    folder = make_classifier(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 8
    tokenizer.save_pretrained(folder)
    classifier = distill.load(folder)
    assert classifier.max_tokens == 8
    words = " ".join(FILLER[:6])
    np.testing.assert_array_equal(classifier.logits([words]), classifier.logits([words + " bad bad bad"]))


def test_half_precision_folders_run_on_a_cpu(tmp_path, tiny_bert):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    reference = distill.load(tiny_bert).logits(TEXTS)
    model.half().save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "half")
    classifier = distill.load(tmp_path / "half", "cpu")
    assert classifier.session.format == "torch-fp16"
    np.testing.assert_allclose(classifier.logits(TEXTS), reference, atol=0.05)
    assert distill.load(tiny_bert, "cpu", dtype="bfloat16").session.format == "torch-bf16"


def test_what_cannot_be_loaded_is_named(tmp_path, tiny_bert):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    model.bert.save_pretrained(tmp_path / "encoder")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "encoder")
    with pytest.raises(ModelError, match="not a text classifier, but BertModel"):
        distill.load(tmp_path / "encoder")
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match="tokenizer"):
        distill.load(tmp_path / "bare")
    folder = make_classifier(tmp_path / "broken")
    (folder / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelError, match="ONNX Runtime cannot load it"):
        distill.load(folder)
    assert distill.load(tiny_bert).label_names == tuple(LABELS)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_transformers_too_reads_logits_that_were_divided(tmp_path, any_classifier, temperature):
    before = distill.load(any_classifier).logits(TEXTS)
    model = AutoModelForSequenceClassification.from_pretrained(any_classifier)
    divide_logits(model, temperature)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(any_classifier).save_pretrained(tmp_path)
    ours = distill.load(tmp_path)
    np.testing.assert_allclose(ours.logits(TEXTS), before / temperature, rtol=1e-4, atol=1e-6)
    for row, theirs in zip(
        ours(TEXTS[:4]), pipeline("text-classification", model=str(tmp_path))(TEXTS[:4]), strict=True
    ):
        assert row["label"] == theirs["label"] and abs(row["score"] - theirs["score"]) < 1e-6


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_not_replaced_in_silence(tiny_bert):
    with pytest.raises(DeviceError, match="no CUDA device"):
        distill.load(tiny_bert, "cuda")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks, so that the imports are paid for once")
def test_the_first_texts_of_openvino_may_come_on_many_threads_at_once():
    pytest.importorskip("openvino")
    code = """
import faulthandler, os, sys, threading
import numpy as np
from distill.inference.runtimes import import_openvino
from distill.storage.contents import text_columns_of
def infer():
    request = compiled.create_infer_request()
    together.wait()
    request.infer({0: np.zeros((2, 3), np.int64)}, share_inputs=True)
for _ in range(10):  # without the tensor that import_openvino makes, one in five waited for ever
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
        continue
    faulthandler.dump_traceback_later(120, exit=True)
    openvino = import_openvino()
    sys.setswitchinterval(1e-6)
    from openvino import opset13
    ids = opset13.parameter([-1, -1], np.int64)
    compiled = openvino.Core().compile_model(openvino.Model([opset13.convert(ids, "f32")], [ids]), "CPU")
    together = threading.Barrier(16)
    threads = [threading.Thread(target=infer) for _ in range(16)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr


def test_one_text_is_not_taken_for_a_list_of_letters(tiny_bert):
    with pytest.raises(TypeError, match=r"wants a list of texts"):
        distill.load(tiny_bert)("good")


@pytest.fixture(scope="module")
def by_runtime(tmp_path_factory, tiny_bert):
    """A classifier of each runtime: the tiny BERT, and a graph that sums ids."""
    from test_bad_models import graph_of

    folder = tmp_path_factory.mktemp("runtimes")
    shutil.copytree(tiny_bert, folder / "onnx")
    (folder / "onnx" / "model.safetensors").unlink()
    shutil.copytree(folder / "onnx", folder / "openvino")
    onnx.save(graph_of(("batch", 2), "logits"), folder / "onnx" / "model.onnx")
    found = {"torch": distill.load(tiny_bert, "cpu"), "onnx": distill.load(folder / "onnx", "cpu", threads=2)}
    if importlib.util.find_spec("openvino"):
        openvino = import_openvino()
        openvino.save_model(
            openvino.Core().read_model(folder / "onnx" / "model.onnx"), folder / "openvino" / "openvino_model.xml"
        )
        found["openvino"] = distill.load(folder / "openvino", "cpu", threads=2)
    return found


@pytest.mark.parametrize("runtime", ["torch", "onnx", "openvino"])
def test_six_threads_get_the_answers_that_one_gets(runtime, by_runtime):
    if runtime not in by_runtime:
        pytest.skip("OpenVINO is not installed")
    classifier = by_runtime[runtime]
    texts = [TEXTS[number:] + TEXTS[:number] for number in range(6)]
    alone = [classifier.logits(some) for some in texts]
    together = threading.Barrier(6)

    def ask(number):
        together.wait()
        return [classifier.logits(texts[number]) for _ in range(8)]

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(6)))
    for expected, found in zip(alone, answers, strict=True):
        for one in found:
            np.testing.assert_allclose(one, expected, atol=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_classifier_is_refused_in_a_fork(by_runtime):
    """Runtimes would wait for ever for threads that are not there."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            by_runtime["torch"]([TEXTS[0]])
        except ModelError as error:
            status = 0 if "this process is a fork of it" in str(error) and "spawn" in (error.hint or "") else 2
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_column_of_texts_is_told_by_the_run_that_a_model_lies_in_and_by_no_other(tmp_path, tiny_bert):
    """A recipe.yaml further up may be anybody's, and broken: with texts on the command line it is not even read."""
    (tmp_path / "recipe.yaml").write_text("a: [")
    model = tmp_path / "models" / "model"
    shutil.copytree(tiny_bert, model)
    assert text_columns_of(model) == ("text",)
    assert run("predict", model, "a good film")[0] == 0
    files = {"train": "train.csv", "test": "test.csv"}
    recipe = {"data": {"files": files, "text_column": "review"}, "teacher": {"model": str(model)}}
    (model / "recipe.yaml").write_text(json.dumps(recipe))
    export = model / "export" / "onnx-fp32"
    export.mkdir(parents=True)
    assert [text_columns_of(folder) for folder in (model, export.parent, export)] == [("review",)] * 3
    assert text_columns_of(tmp_path / "models") == text_columns_of(model / "other" / "onnx-fp32") == ("text",)
