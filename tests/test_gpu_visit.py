"""The tools of the GPU's measurement, as far as a machine without one can tell: they run, resume and count right."""

import functools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from conftest import make_classifier
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from distill.export.onnx_graph import trace
from distill.inference.torch_session import TorchSession
from distill.models.loading import load_tokenizer

ROOT = Path(__file__).parent.parent


sys.path.append(str(ROOT / "tools" / "gpu"))  # which is no package
import base_size as gpu_base  # noqa: E402
import goals as gpu_goals  # noqa: E402
import kinds as gpu_kinds  # noqa: E402
import latency as gpu_latency  # noqa: E402
import parts as gpu_parts  # noqa: E402
import pieces as gpu_pieces  # noqa: E402
import steps as gpu_steps  # noqa: E402
import visit as gpu_visit  # noqa: E402
from unpadded import UnpaddedSession  # noqa: E402


@pytest.fixture(scope="module")
def exported(tiny_bert, tmp_path_factory):
    """The tiny model and a folder of its exports; both are its fp32 graph: test_export.py says what the half one is."""
    folder = tmp_path_factory.mktemp("exports")
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert).eval()
    (folder / "onnx-fp32").mkdir()
    trace(model, folder / "onnx-fp32" / "model.onnx")
    shutil.copytree(folder / "onnx-fp32", folder / "onnx-fp16")
    return model, folder


@pytest.mark.slow  # torch.compile alone takes seconds to import
def test_formats_agree_with_torch_also_at_a_fixed_shape_and_without_a_mask(exported):
    for shape in ("3x9", "3x4-9"):
        found = gpu_latency.measure(gpu_latency.Bench(*exported, "cpu", shape), None, 5)
        assert all("skipped" in found[name] for name in found if "graph" in name)
        assert any("no mask" in name for name in found) == (shape == "3x9")  # it is wrong where a text is padded
        for name, figures in found.items():
            if "graph" not in name:
                assert figures["agreement"] == 1 and figures["max_logit_diff"] < 0.1, (name, figures)
                assert len(figures["latency_ms"]["raw"]) == 5 and figures["sequences_per_second"] > 0


def test_texts_of_a_shape_are_padded_down_to_the_least_length(tiny_bert, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    for shape, lengths in (("3x8", [8, 8, 8]), ("3x2-8", [8, 5, 2]), ("1x2-8", [8])):
        mask = gpu_latency.Bench(model, tmp_path, "cpu", shape).mask
        assert mask.shape[1] == 8 and mask.sum(axis=1).tolist() == lengths
        np.testing.assert_array_equal(mask, np.arange(8) < mask.sum(axis=1)[:, None])


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "modernbert", "gte"])
@given(lengths=st.lists(st.integers(1, 14), min_size=1, max_size=5))
@settings(max_examples=10, deadline=None)
def test_unpadded_texts_get_the_logits_of_padded_ones(classifiers, architecture, lengths):
    padded, unpadded = classifiers(architecture)
    ids = np.random.default_rng(sum(lengths)).integers(5, 29, (len(lengths), max(lengths)))
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    np.testing.assert_allclose(unpadded.run(ids, mask), padded.run(ids, mask), atol=2e-5)


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    """For an architecture, a small classifier in distill's session and in the one without padding."""
    folder = tmp_path_factory.mktemp("classifiers")

    @functools.cache
    def sessions(architecture):
        name = make_classifier(folder / architecture, architecture)
        models = (AutoModelForSequenceClassification.from_pretrained(name) for _ in range(2))
        return TorchSession(next(models), "cpu"), UnpaddedSession(next(models), "cpu")

    return sessions


def test_the_pieces_of_an_encoder_are_small_and_together_the_encoder(tiny_bert, tmp_path):
    size = 20_000
    gpu_pieces.cut(tiny_bert, tmp_path / "pieces", size)
    pieces = sorted((tmp_path / "pieces").iterdir())
    weights = [file for piece in pieces for file in piece.glob("*.safetensors")]
    assert len(pieces) == len(weights) > 2 and all(file.stat().st_size < 1.5 * size for file in weights)
    for piece in pieces:
        shutil.copytree(piece, tmp_path / "joined", dirs_exist_ok=True)
    whole, joined = (
        AutoModelForSequenceClassification.from_pretrained(name, dtype="float32").state_dict()
        for name in (tiny_bert, tmp_path / "joined")
    )
    assert all((joined[name] == tensor.half()).all() for name, tensor in whole.items())
    assert load_tokenizer(str(tmp_path / "joined")).get_vocab() == load_tokenizer(str(tiny_bert)).get_vocab()


def test_a_model_that_reads_more_than_the_first_token_is_not_unpadded(tmp_path):
    for architecture, config in (("qwen3", {}), ("mpnet", {}), ("modernbert", {"classifier_pooling": "mean"})):
        name = make_classifier(tmp_path / architecture, architecture, **config)
        model = AutoModelForSequenceClassification.from_pretrained(name)
        with pytest.raises(ValueError, match="wants a head that reads the first token"):
            UnpaddedSession(model, "cpu")


@pytest.mark.slow  # with tracing, which the other default tests here do without
def test_without_its_mask_a_graph_reads_padding_as_text_and_told_their_lengths_it_does_not(exported):
    path = exported[1] / "onnx-fp32" / "model.onnx"
    ids, mask = np.random.default_rng(0).integers(5, 29, (2, 8)), np.ones((2, 8), np.int64)
    padded = np.where(np.arange(8) < 5, mask, 0)
    padded[0] = 1
    whole = onnxruntime.InferenceSession(path)
    blind = onnxruntime.InferenceSession(gpu_latency.with_mask(path, "no mask"))
    feed = {"input_ids": ids, "attention_mask": padded}
    for kind in ("lengths", "starts"):
        told = onnxruntime.InferenceSession(gpu_latency.with_mask(path, kind))
        np.testing.assert_allclose(told.run(["logits"], feed)[0], whole.run(["logits"], feed)[0], atol=1e-5)
    for kind in (mask, padded):
        (found,) = blind.run(["logits"], {"input_ids": ids, "attention_mask": kind})
        (wanted,) = whole.run(["logits"], {"input_ids": ids, "attention_mask": mask})
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(whole.run(["logits"], {"input_ids": ids, "attention_mask": padded})[0] - wanted).max() > 1e-3


def test_a_format_that_fails_is_named_and_the_others_are_timed(tiny_bert, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert).eval()
    found = gpu_latency.measure(gpu_latency.Bench(model, tmp_path, "cpu", "1x5"), ["torch-fp32", "onnx-fp32"], 5)
    assert "model.onnx" in found["onnx-fp32"]["error"] and "latency_ms" in found["torch-fp32"]


@pytest.fixture
def visit(tmp_path, monkeypatch):
    """A visit of ten seconds to this machine, that has nothing."""
    monkeypatch.setattr(gpu_steps, "LEAST_SECONDS", 0.1)
    words = ["visit.py", "check", "--work", str(tmp_path), "--out", str(tmp_path / "out"), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", words)
    (tmp_path / "out").mkdir()
    return gpu_steps.Visit(gpu_visit.parsed(), gpu_steps.TOY, time.monotonic() + 10, tmp_path / "visit.log")


def test_a_step_that_fails_or_lacks_something_is_kept_as_text(visit):
    def failing(code):
        return gpu_steps.attempt(gpu_steps.Step("x", 1, lambda visit: visit.measure(sys.executable, "-c", code)), visit)

    assert failing("raise ValueError('so')")["error"].startswith("exit status 1: ValueError: so\n")
    ours = failing("import sys; sys.exit('error: x: not there\\nhint: look')")["error"]
    assert ours.startswith("exit status 1: error: x: not there\n")
    assert "no JSON" in failing("print('nothing')")["error"]
    assert failing("print('{\"a\": NaN}')")["a"] is None
    skipped = gpu_steps.attempt(gpu_steps.Step("x", 1, gpu_parts.notes_way), visit)
    assert skipped["skipped"] == "no --notes-teacher"


@pytest.mark.slow
def test_a_step_whose_time_is_up_ends_with_all_that_it_started(visit, tmp_path):
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)', 'CHILD'])"
    found = gpu_steps.attempt(
        gpu_steps.Step("x", 0.005, lambda visit: visit.measure(sys.executable, "-c", code, tmp_path)), visit
    )
    assert found["error"] == "its time was up" and found["seconds"] < 10
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(tmp_path) not in running


def test_what_is_done_is_not_done_again_and_what_failed_is(visit, monkeypatch):
    done = []

    def steps(visit):
        yield gpu_steps.Step("good", 1, lambda visit: done.append("good") or {"found": 1})
        yield gpu_steps.Step("bad", 1, lambda visit: done.append("bad") or {}["nothing"])
        yield gpu_steps.Step("sum", 1, lambda visit: done.append("sum") or {}, again=True)

    monkeypatch.setitem(gpu_parts.PARTS, "check", steps)
    for _ in range(2):
        gpu_visit.do("check", visit, {"gpu": "none"})
    assert done == ["good", "bad", "sum", "bad", "sum"]
    found = json.loads((visit.arguments.out / "gpu-check.json").read_text())
    assert found["steps"]["good"]["found"] == 1 and "KeyError" in found["steps"]["bad"]["error"]
    assert len(found["conditions"]) == 2
    assert "bad: error: KeyError" in gpu_goals.table(visit.work)


def test_a_step_or_format_that_does_not_exist_is_refused_before_anything_runs(tmp_path, monkeypatch, exported):
    command = ["visit.py", "check", "--toy", "--device", "cpu", "--steps", "peek", "peak"]
    monkeypatch.setattr(sys, "argv", [*command, "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"--steps: peek: no step of check \(what is here, peak, "):
        gpu_visit.main()
    assert not list((tmp_path / "work").iterdir())
    with pytest.raises(SystemExit, match=r"--formats: torch-fp61: no such format; there are torch-fp32, "):
        gpu_latency.measure(gpu_latency.Bench(*exported, "cpu", "1x4"), ["torch-fp32", "torch-fp61"], 5)


def test_the_table_says_which_goals_are_met_missed_and_not_measured(tmp_path):
    def latency(median):
        return {"latency_ms": {"p50": median}, "sequences_per_second": 1e3 / median}

    formats = {"torch-fp16": latency(2.0), "onnx-fp16 graph": latency(1.0), "onnx-fp16 graph, no mask": latency(0.1)}
    steps = {"bert-base 1x128": {"formats": formats | {"torch-fp16 compiled": {"error": "no compiler"}}}}
    (tmp_path / "gpu-exports.json").write_text(json.dumps({"steps": steps, "toy": False}))
    lines = gpu_goals.table(tmp_path).splitlines()
    assert [line.split()[-2:] for line in lines if line.startswith("BERT-base 1x128")] == [
        ["2.000", "met"], ["1.000", "missed"],
    ]  # fmt: skip
    assert sum("not measured" in line for line in lines) == len(gpu_goals.GOALS) - 2
    assert any("torch-fp16 compiled: no compiler" in line for line in lines)


@pytest.mark.slow
def test_the_rehearsal_runs_every_part_and_a_second_visit_does_nothing_again(tmp_path):
    parts = list(gpu_parts.PARTS)
    command = [sys.executable, ROOT / "tools" / "gpu" / "visit.py", *parts, "--toy", "--device", "cpu"]
    command += ["--work", tmp_path / "work", "--out", tmp_path / "out", "--minutes", "60"]
    visit = SimpleNamespace(arguments=SimpleNamespace(toy=True, seeds=[1]), size=gpu_steps.TOY)
    steps = {step.name for part in parts for step in gpu_parts.PARTS[part](visit)}
    of_yelp = {name for name in steps if name.startswith("yelp")}  # as IMDb's, so its files are enough
    command += ["--steps", *(steps - of_yelp), "yelp baseline"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    first = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    found = {part: json.loads((tmp_path / "out" / f"gpu-{part}.json").read_text()) for part in parts}
    for part, file in found.items():
        assert file["toy"] and file["part"] == part
        assert {"versions", "hardware", "measured"} <= set(file["conditions"][0]), file["conditions"]
        for name, step in file["steps"].items():
            assert "error" not in step, f"{part}: {name}: {step}"
    skipped = {name for file in found.values() for name, step in file["steps"].items() if "skipped" in step}
    assert skipped == {"gpu tests", "the notes' way", "distill student and TextBrewer"}
    measured = found["exports"]["steps"]["bert-base 4x16"]["formats"]
    several = found["exports"]["steps"]["modernbert-base 4x4-16"]["formats"]
    assert several["torch-bf16 unpadded"]["latency_ms"]["p50"] > 0 and "skipped" in several["onnx-fp16 fixed, starts"]
    runs = found["base"]["steps"]["imdb result"]["runs"]
    assert set(runs) == {
        "baseline", "teacher", *(f"{name}{kind}" for name in gpu_base.STUDENTS for kind in ("", "-control"))
    }  # fmt: skip
    assert {"against baseline", "against teacher", "against small encoder-control"} < set(runs["small encoder"])
    assert of_yelp & set(found["base"]["steps"]) == {"yelp baseline"}
    kinds = found["kinds"]["steps"]
    assert all(kinds[f"bundle: {name}"]["agreement"] == 1 for name in gpu_kinds.ORIGINS)
    assert all("seconds" in step for file in found.values() for step in file["steps"].values())
    assert found["predict"]["steps"]["without padding"]["agreement"]["torch-fp16 unpadded"] == 1
    assert len(measured["onnx-fp16 fixed"]["latency_ms"]["raw"]) == 5 and measured["torch-fp32"]["agreement"] == 1
    graphs = found["exports"]["steps"]["bert-base graphs"]["exports"]
    assert graphs["onnx-fp16"]["attention"] == {"fused": 4, "expected": 4} and graphs["onnx-fp32"]["shortfall"] is None
    arms = json.loads((tmp_path / "out" / "distillation-gain-gpu.json").read_text())["arms"]
    assert set(arms) == {"teacher", "soft-control", "soft", "unlabelled"}
    assert (tmp_path / "out" / "visit.log").stat().st_size > 0
    assert "no figure above means anything" in first.stdout

    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    begun = [line.split(": ")[1].split(" (")[0] for line in again.stderr.splitlines() if "minutes left)" in line]
    assert set(begun) == {"conditions", "result", "imdb result", *skipped}
