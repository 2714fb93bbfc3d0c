import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import BAD, FILLER, GOOD, LABELS, make_classifier
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, pipeline

import distill
from distill import export as exporting
from distill.export import export_formats, trace
from distill.recipe import FORMATS

OTHERS = ["distilbert", "electra", "roberta"]
TEXTS = [" ".join((FILLER * 3)[i : i + 3 + i % 20] + [(GOOD if i % 2 else BAD)[i % 5]] * 2) for i in range(40)]


GOLD = np.random.default_rng(0).integers(0, 2, len(TEXTS))
TEMPERATURE = 0.25  # small logits become large enough to tell none, one and two divisions apart


def export(folder, target, formats=FORMATS, *, gold=None, drop=1.0):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if gold is None:
        gold = distill.load(folder).logits(TEXTS).argmax(axis=1)  # the model is right by definition
    proofs = export_formats(
        model, tokenizer, LABELS, TEXTS, gold, target, formats, max_tokens=64, max_accuracy_drop=drop, device="cpu"
    )
    return {proof.format: proof for proof in proofs}


@pytest.fixture(scope="module")
def calibrated(tiny_bert, tmp_path_factory):
    """The tiny BERT with a temperature in its config."""
    folder = tmp_path_factory.mktemp("calibrated") / "bert"
    shutil.copytree(tiny_bert, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"calibration_temperature": TEMPERATURE}))
    return folder


@pytest.fixture(scope="module")
def exported(calibrated, tmp_path_factory):
    """Every format of the calibrated BERT, with proofs against labels that it gets wrong half of the time."""
    folder = tmp_path_factory.mktemp("exported")
    return folder, export(calibrated, folder, gold=GOLD)


# Tracing takes seconds, so the other architectures are in the slow tier; `exported` is the BERT of every run.
@pytest.mark.slow
def test_every_architecture_exports_with_attention_fused_and_agrees_with_torch(any_classifier, tmp_path):
    proofs = export(any_classifier, tmp_path / "export")
    reference = distill.load(any_classifier).logits(TEXTS)
    scale = np.abs(reference).max()
    for name, tolerance in (("onnx-fp32", 1e-5), ("onnx-fp16", 0.02), ("torch-fp16", 0.02), ("onnx-int8", 0.25)):
        proof = proofs[name]
        assert proof.passed, proof
        logits = distill.load(tmp_path / "export" / name).logits(TEXTS)
        assert np.abs(logits - reference).max() <= tolerance * max(1, scale), name
        if name.startswith("onnx"):
            assert proof.fusion == {"attention": {"fused": 4, "expected": 4}}
    assert proofs["onnx-fp32"].agreement == 1
    assert proofs["onnx-fp32"].accuracy_drop == 0
    assert proofs["onnx-int8"].size_bytes < proofs["onnx-fp32"].size_bytes


def test_the_proof_states_what_the_written_folder_does(calibrated, exported):
    folder, proofs = exported
    reference = distill.load(calibrated).logits(TEXTS)
    for name, proof in proofs.items():
        logits = distill.load(folder / name).logits(TEXTS)
        assert np.abs(logits - reference).max() < (0.5 if name == "onnx-int8" else 0.02), name
        assert proof.accuracy == pytest.approx((logits.argmax(1) == GOLD).mean())
        assert proof.accuracy_drop == pytest.approx((reference.argmax(1) == GOLD).mean() - proof.accuracy)
        assert proof.agreement == pytest.approx((logits.argmax(1) == reference.argmax(1)).mean())
        if name.startswith("onnx"):
            assert proof.max_logit_diff == pytest.approx(np.abs(logits - reference).max(), rel=1e-3)
            assert proof.fusion == {"attention": {"fused": 4, "expected": 4}}


@pytest.mark.parametrize("architecture", ["bert", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_the_graph_takes_any_batch_and_length_and_ignores_padding(architecture, tmp_path):
    folder = make_classifier(tmp_path / "model", architecture)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    trace(model, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert [(item.name, item.type) for item in session.get_inputs()] == [
        ("input_ids", "tensor(int64)"),
        ("attention_mask", "tensor(int64)"),
    ]
    assert [item.name for item in session.get_outputs()] == ["logits"]
    rng = np.random.default_rng(0)
    for batch, tokens in ((1, 1), (1, 7), (3, 64), (8, 5)):
        ids = rng.integers(5, 29, (batch, tokens))
        mask = np.ones_like(ids)
        mask[-1, tokens // 2 + 1 :] = 0
        (logits,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
        with torch.no_grad():
            expected = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits.numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-4)
        if tokens > 2:
            ids[-1, tokens // 2 + 1 :] = 7  # what stands under the padding
            np.testing.assert_allclose(
                session.run(None, {"input_ids": ids, "attention_mask": mask})[0], logits, atol=1e-5
            )


def test_an_onnx_folder_is_complete_and_carries_the_label_names(calibrated, exported):
    folder = exported[0] / "onnx-fp32"
    assert json.loads((folder / "config.json").read_text())["id2label"] == {"0": "negative", "1": "positive"}
    assert (
        AutoTokenizer.from_pretrained(folder)("good")["input_ids"]
        == AutoTokenizer.from_pretrained(calibrated)("good")["input_ids"]
    )
    onnx.checker.check_model(onnx.load(folder / "model.onnx"))
    for ours, torchs in zip(distill.load(folder)(TEXTS), distill.load(calibrated)(TEXTS), strict=True):
        assert ours == {"label": torchs["label"], "score": pytest.approx(torchs["score"], abs=1e-5)}


def test_exports_are_calibrated_once(tiny_bert, exported):
    """The temperature is inside the graph and in no config beside it; a torch folder has it in its config instead."""
    plain = distill.load(tiny_bert).logits(TEXTS)
    for name, tolerance in (("torch-fp16", 0.02), ("onnx-fp32", 1e-4), ("onnx-fp16", 0.02), ("onnx-int8", 0.25)):
        folder = exported[0] / name
        np.testing.assert_allclose(distill.load(folder).logits(TEXTS), plain / TEMPERATURE, atol=tolerance)
        config = json.loads((folder / "config.json").read_text())
        if name.startswith("onnx-"):
            assert "calibration_temperature" not in config
        else:
            assert config["calibration_temperature"] == TEMPERATURE
    assert np.abs(plain / TEMPERATURE - plain).min() > 0.25  # beyond every tolerance: none would show, and so would two


def test_a_torch_folder_works_in_the_transformers_pipeline(calibrated, exported):
    classify = pipeline("text-classification", model=str(exported[0] / "torch-fp16"), dtype=torch.float32)
    assert [row["label"] for row in classify(TEXTS)] == [row["label"] for row in distill.load(calibrated)(TEXTS)]


def test_a_format_that_loses_accuracy_fails_and_leaves_no_folder(tiny_bert, exported, tmp_path, monkeypatch):
    shutil.copytree(exported[0], tmp_path, dirs_exist_ok=True)

    def write_a_worse_model(model, graph, folder):
        worse = make_classifier(folder.parent / "other", num_labels=2)
        other = AutoModelForSequenceClassification.from_pretrained(worse)
        other.classifier.weight.data.neg_()
        other.half().save_pretrained(folder)

    monkeypatch.setitem(exporting.WRITERS, "torch-fp16", write_a_worse_model)
    proof = export(tiny_bert, tmp_path, ["torch-fp16"], drop=0.01)["torch-fp16"]
    assert not proof.passed and "more than export.max_accuracy_drop 0.01" in proof.reason
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        set(FORMATS) - {"torch-fp16"}
    )  # the older one is gone too


def test_logits_that_are_not_finite_fail(tmp_path):
    folder = make_classifier(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    # Each weight is a fine fp16 number; their sum of products passes 65,504, which fp32 does not mind.
    model.bert.encoder.layer[1].intermediate.dense.bias.data.fill_(60_000.0)
    model.bert.encoder.layer[1].intermediate.dense.weight.data.fill_(0.0)
    model.bert.encoder.layer[1].output.dense.weight.data.fill_(2.0)
    model.save_pretrained(folder)
    assert np.isfinite(distill.load(folder).logits(TEXTS)).all()
    for name, proof in export(folder, tmp_path / "export", ["torch-fp16", "onnx-fp16"]).items():
        assert not proof.passed and "are not finite" in proof.reason, name
    assert not list((tmp_path / "export").iterdir())


def test_attention_that_is_not_fused_fails(tiny_bert, tmp_path, monkeypatch):
    """The exporter of a transformers that no longer asked our attention function would look like this."""
    monkeypatch.setattr(PreTrainedModel, "set_attn_implementation", lambda model, name: None)
    proof = export(tiny_bert, tmp_path, ["onnx-fp32"])["onnx-fp32"]
    assert not proof.passed and proof.reason == "attention fused in 0 of 4 layers"
    assert not list(tmp_path.iterdir())


def test_exporting_leaves_the_model_as_it_was(tiny_bert, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert).eval()
    ids = torch.tensor([[2, 6, 7, 3]])
    before = model(input_ids=ids).logits
    trace(model, tmp_path / "m.onnx")
    assert torch.equal(model(input_ids=ids).logits, before)
    assert model.config._attn_implementation == "sdpa"
    assert next(model.parameters()).dtype == torch.float32
