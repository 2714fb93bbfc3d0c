import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import BAD, FILLER, GOOD, LABELS, make_classifier
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, pipeline

import distill
from distill import commands
from distill.data.encoding import Truncation
from distill.errors import DeviceError, ModelError
from distill.export import formats as exporting
from distill.export import onnx_graph
from distill.export.formats import export_formats
from distill.export.int8 import int8_settings, quantise
from distill.export.onnx_graph import trace
from distill.export.proofs import Bounds
from distill.models.loading import divide_logits
from distill.recipe.file import load_recipe
from distill.recipe.schema import DEFAULT_FORMATS as FORMATS
from distill.storage.checksums import SEAL

OTHERS = ["distilbert", "electra", "roberta"]
TEXTS = [" ".join((FILLER * 3)[i : i + 3 + i % 20] + [(GOOD if i % 2 else BAD)[i % 5]] * 2) for i in range(40)]


GOLD = np.random.default_rng(0).integers(0, 2, len(TEXTS))
TEMPERATURE = 0.25  # small logits become large enough to tell none, one and two divisions apart


def export(folder, target, formats=FORMATS, *, gold=None, drop=1.0, agreement=0.0):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if gold is None:
        gold = distill.load(folder).logits(TEXTS).argmax(axis=1)  # the model is right by definition
    ids = torch.tensor([[2, 6, 7, 3]])
    before = model.eval()(input_ids=ids).logits
    proofs = list(export_formats(
        model, tokenizer, LABELS, TEXTS, gold, target, formats,
        truncation=Truncation(64), bounds=Bounds(drop, agreement), device="cpu", card=lambda proof: f"# {proof.format}",
    ))  # fmt: skip
    # Exporting leaves the model as it was.
    assert torch.equal(model(input_ids=ids).logits, before) and next(model.parameters()).dtype == torch.float32
    assert model.config._attn_implementation == "sdpa"
    return {proof.format: proof for proof in proofs}


def assert_says_nothing_of_this_machine(folder):
    """No file of an export names a path: torch notes its own stack on every node, and exports are published."""
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        for told in (str(Path(torch.__file__).parent.parent), str(Path(distill.__file__).parent), str(folder.parent)):
            assert told.encode() not in content, f"{path.name} names {told}"


def assert_whole(proof):
    """Every attention, LayerNorm and Gelu of four layers is one node, and int8 weights are used in every product."""
    assert proof.fusion["attention"] == {"fused": 4, "expected": 4}
    assert proof.fusion["layer_norm"] == {"fused": 9, "expected": 9}
    gelu, isolated = proof.fusion["gelu"], 0
    if proof.format == "onnx-int8":
        assert proof.fusion["int8_products"] >= 6 * 4
        isolated = gelu["expected"] - 4
        assert isolated >= 3  # in the last layer the first token may be alone, with other nodes
    assert gelu["fused"] >= gelu["expected"] >= 4 + isolated  # ELECTRA's head has one more
    assert proof.fusion.get("stray_casts", 0) == 0


@pytest.fixture(scope="module")
def calibrated(tiny_bert, tmp_path_factory):
    """The tiny BERT, calibrated with a temperature."""
    folder = tmp_path_factory.mktemp("calibrated") / "bert"
    shutil.copytree(tiny_bert, folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    divide_logits(model, TEMPERATURE)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(calibrated, tmp_path_factory):
    """Every format of the calibrated BERT, with proofs against labels that it gets wrong half of the time."""
    folder = tmp_path_factory.mktemp("exported")
    return folder, export(calibrated, folder, gold=GOLD)


@pytest.fixture
def traced_before(exported, monkeypatch):
    """Tracing takes seconds: the calibrated BERT's graph is the one that was traced for `exported`."""
    monkeypatch.setattr(
        exporting, "trace", lambda model, path: shutil.copy(exported[0] / "onnx-fp32" / "model.onnx", path)
    )


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
            assert_whole(proof)
    assert proofs["onnx-fp32"].agreement == 1
    assert proofs["onnx-fp32"].accuracy_drop == 0
    assert proofs["onnx-int8"].size_bytes < proofs["onnx-fp32"].size_bytes


def test_the_proof_states_what_the_written_folder_does(calibrated, exported):
    folder, proofs = exported
    assert_says_nothing_of_this_machine(folder)
    reference = distill.load(calibrated).logits(TEXTS)
    for name, proof in proofs.items():
        logits = distill.load(folder / name).logits(TEXTS)
        assert np.abs(logits - reference).max() < (0.5 if name == "onnx-int8" else 0.02), name
        assert proof.accuracy == pytest.approx((logits.argmax(1) == GOLD).mean())
        assert proof.accuracy_drop == pytest.approx((reference.argmax(1) == GOLD).mean() - proof.accuracy)
        assert proof.agreement == pytest.approx((logits.argmax(1) == reference.argmax(1)).mean())
        if name.startswith("onnx"):
            largest = np.abs(logits - reference).max()
            if name == "onnx-fp16":  # or what rounding would make of it, where a CPU computes it in fp32
                assert largest * 0.999 <= proof.max_logit_diff < 0.02
            else:
                assert proof.max_logit_diff == pytest.approx(largest, rel=1e-3)
            assert_whole(proof)


def assert_takes_any_shape_and_ignores_padding(path, model):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
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


def test_the_graph_takes_any_batch_and_length_and_ignores_padding(calibrated, exported):
    model = AutoModelForSequenceClassification.from_pretrained(calibrated).eval()
    assert_takes_any_shape_and_ignores_padding(exported[0] / "onnx-fp32" / "model.onnx", model)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", OTHERS)
def test_graphs_of_other_architectures_take_any_shape_too(architecture, tmp_path):
    folder = make_classifier(tmp_path / "model", architecture)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    trace(model, tmp_path / "m.onnx")
    assert_takes_any_shape_and_ignores_padding(tmp_path / "m.onnx", model)


def test_an_onnx_folder_is_complete_and_carries_the_label_names(calibrated, exported):
    folder = exported[0] / "onnx-fp32"
    assert json.loads((folder / "config.json").read_text())["id2label"] == {"0": "negative", "1": "positive"}
    assert (
        AutoTokenizer.from_pretrained(folder)("good")["input_ids"]
        == AutoTokenizer.from_pretrained(calibrated)("good")["input_ids"]
    )
    onnx.checker.check_model(onnx.load(folder / "model.onnx"))
    meta = onnxruntime.InferenceSession(folder / "model.onnx").get_modelmeta()
    about = meta.custom_metadata_map
    assert json.loads(about["label_names"]) == LABELS and about["task"] == "single_label"
    assert (about["format"], about["max_tokens"], about["truncation"]) == ("onnx-fp32", "64", "head")
    assert about["version_of_torch"] == torch.__version__ and "made with distill" in meta.description
    for ours, torchs in zip(distill.load(folder)(TEXTS), distill.load(calibrated)(TEXTS), strict=True):
        assert ours == {"label": torchs["label"], "score": pytest.approx(torchs["score"], abs=1e-5)}


def test_exports_are_calibrated_once(tiny_bert, exported):
    plain = distill.load(tiny_bert).logits(TEXTS)
    for name, tolerance in (("torch-fp16", 0.02), ("onnx-fp32", 1e-4), ("onnx-fp16", 0.02), ("onnx-int8", 0.25)):
        folder = exported[0] / name
        np.testing.assert_allclose(distill.load(folder).logits(TEXTS), plain / TEMPERATURE, atol=tolerance)
        # The name that transformers 5 has for it stops transformers 4, and with it Optimum.
        tokenizer = json.loads((exported[0] / name / "tokenizer_config.json").read_text())
        assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert np.abs(plain / TEMPERATURE - plain).min() > 0.25  # beyond every tolerance: none would show, and so would two


def assert_many_batches_answer_as_one_does(path):
    session = distill.load(path, threads=2).session
    rng = np.random.default_rng(0)
    shapes = [(rng.integers(1, 4), rng.integers(3, 40)) for _ in range(24)]
    batches = [(ids := rng.integers(5, 29, shape), np.ones_like(ids)) for shape in shapes]
    for (ids, mask), together in zip(batches, session.run_each(batches), strict=True):
        np.testing.assert_allclose(together, session.run(ids, mask), atol=1e-5)
    assert {"_on_one_thread", "_on_streams"} & set(vars(session))  # another session did it than the one of `run`


@pytest.mark.parametrize("name", ["onnx-fp32", "onnx-int8"])
def test_many_batches_at_once_answer_as_one_does_and_in_order(exported, name):
    assert_many_batches_answer_as_one_does(exported[0] / name)


def test_a_batch_that_fails_among_many_is_not_lost(exported):
    session = distill.load(exported[0] / "onnx-fp32", threads=2).session
    fine = np.full((1, 4), 5)
    unknown = np.full((1, 4), 10**6)  # a token that no table has
    with pytest.raises(Exception, match="indices"):
        list(session.run_each([(fine, fine), (fine, fine), (unknown, fine), (fine, fine)]))


def test_a_folder_of_exports_runs_the_fastest_that_passed_and_can_run(exported, tmp_path, monkeypatch):
    folder, proofs = exported
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    assert proofs["torch-fp16"].texts_per_second is proofs["onnx-fp16"].texts_per_second is None  # not for CPUs
    assert {proof.device for proof in proofs.values()} == {"cpu"}
    entries = {name: proof.as_json() for name, proof in proofs.items()}

    def chosen(**rates):
        for name, rate in rates.items():
            assert entries[f"onnx-{name}"]["texts_per_second"] > 0
            entries[f"onnx-{name}"]["texts_per_second"] = rate
        (tmp_path / "export.json").write_text(json.dumps(entries))
        for name, entry in entries.items():
            if (tmp_path / name).is_dir():
                (tmp_path / name / SEAL).unlink(missing_ok=True)
                (tmp_path / name / "proof.json").write_text(json.dumps(entry))
        return distill.load(tmp_path).session.format

    assert chosen(fp32=100.0, int8=200.0) == "onnx-int8"
    assert chosen(fp32=300.0) == "onnx-fp32"
    entries["openvino-int8"] = entries["onnx-fp32"] | {"texts_per_second": 400.0}
    shutil.copytree(tmp_path / "onnx-fp32", tmp_path / "openvino-int8")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert chosen() == "onnx-fp32"  # OpenVINO is not installed
    entries["onnx-fp32"]["passed"] = False
    assert chosen() == "onnx-int8"
    shutil.rmtree(tmp_path / "onnx-int8")
    with pytest.raises(ModelError, match="none of its formats that run here was timed on cpu"):
        chosen()


def test_a_torch_folder_works_in_the_transformers_pipeline(calibrated, exported):
    classify = pipeline("text-classification", model=str(exported[0] / "torch-fp16"), dtype=torch.float32)
    assert [row["label"] for row in classify(TEXTS)] == [row["label"] for row in distill.load(calibrated)(TEXTS)]


@pytest.mark.slow
@pytest.mark.skipif(
    "DISTILL_OPTIMUM_PYTHON" not in os.environ,
    reason="DISTILL_OPTIMUM_PYTHON names the Python of an environment with optimum-onnx, which cannot share ours",
)
@pytest.mark.parametrize("name", ["onnx-fp32", "onnx-fp16", "onnx-int8"])
def test_optimum_loads_the_folder_and_gives_the_same_labels(exported, name, tmp_path):
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "texts.parquet")
    tool = Path(__file__).parent.parent / "tools" / "benchmarks" / "optimum_agrees.py"
    command = [
        sys.executable,
        tool,
        os.environ["DISTILL_OPTIMUM_PYTHON"],
        exported[0] / name,
        tmp_path / "texts.parquet",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_format_that_loses_accuracy_fails_and_leaves_no_folder(tiny_bert, exported, tmp_path, monkeypatch):
    shutil.copytree(exported[0], tmp_path, dirs_exist_ok=True)

    def write_a_worse_model(source, folder, settings):
        worse = make_classifier(folder.parent / "other", num_labels=2)
        other = AutoModelForSequenceClassification.from_pretrained(worse)
        other.classifier.weight.data.neg_()
        other.half().save_pretrained(folder)

    monkeypatch.setitem(exporting.WRITERS, "torch-fp16", write_a_worse_model)
    proof = export(tiny_bert, tmp_path, ["torch-fp16"], drop=0.01)["torch-fp16"]
    assert not proof.passed and "more than export.max_accuracy_drop 0.01" in proof.reason
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == set(FORMATS) - {"torch-fp16"}  # the older too
    flipped = [json.loads(line) for line in (tmp_path / "flipped-torch-fp16.jsonl").read_text().splitlines()]
    assert len(flipped) == proof.flipped == len(TEXTS)  # the head was negated, so every label is
    by_text = {row["text"]: row for row in flipped}
    for text, probabilities in zip(TEXTS, distill.load(tiny_bert).probabilities(TEXTS), strict=True):
        row = by_text[text]
        assert row["model"] == row["gold"] == LABELS[probabilities.argmax()] != row["format"]
        assert row["model_probabilities"] == pytest.approx(dict(zip(LABELS, probabilities, strict=True)), abs=1e-4)


def test_logits_that_are_not_finite_fail(tmp_path):
    folder = make_classifier(tmp_path / "model", num_hidden_layers=1)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    # Each weight is a fine fp16 number; their sum of products passes 65,504, which fp32 does not mind.
    model.bert.encoder.layer[0].intermediate.dense.bias.data.fill_(60_000.0)
    model.bert.encoder.layer[0].intermediate.dense.weight.data.fill_(0.0)
    model.bert.encoder.layer[0].output.dense.weight.data.fill_(2.0)
    model.save_pretrained(folder)
    assert np.isfinite(distill.load(folder).logits(TEXTS)).all()
    for name, proof in export(folder, tmp_path / "export", ["torch-fp16", "onnx-fp16"]).items():
        assert not proof.passed and "are not finite" in proof.reason, name
    assert not [path for path in (tmp_path / "export").iterdir() if path.is_dir()]


def test_what_a_library_cannot_write_fails_and_the_other_formats_stay(tiny_bert, exported, tmp_path, monkeypatch):
    def refuse(source, folder, settings):
        (folder / "model.onnx").write_text("half of it")
        raise ValueError("all input arrays must have the same shape\nand more")

    monkeypatch.setitem(exporting.WRITERS, "onnx-fp16", refuse)
    proofs = export(tiny_bert, tmp_path / "export", ["onnx-fp16", "torch-fp16"])
    assert proofs["torch-fp16"].passed and not proofs["onnx-fp16"].passed
    assert proofs["onnx-fp16"].reason == ("cannot be made of a bert model: all input arrays must have the same shape")
    assert [path.name for path in (tmp_path / "export").iterdir()] == ["torch-fp16"]


def test_a_graph_that_cannot_be_traced_fails_each_format_that_needs_it(tiny_bert, tmp_path, monkeypatch):
    def refuse(model, path):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(exporting, "trace", refuse)
    proofs = export(tiny_bert, tmp_path / "export", ["onnx-fp32", "onnx-int8", "torch-fp16"])
    assert proofs["torch-fp16"].passed
    for name in ("onnx-fp32", "onnx-int8"):
        assert proofs[name].reason == "cannot be made of a bert model: no such operator"


def test_attention_that_is_not_fused_fails(tmp_path, monkeypatch):
    """The exporter of a transformers that no longer asked our attention function would look like this."""
    monkeypatch.setattr(PreTrainedModel, "set_attn_implementation", lambda model, name: None)
    folder = make_classifier(tmp_path / "model", num_hidden_layers=1)
    proof = export(folder, tmp_path / "export", ["onnx-fp32"])["onnx-fp32"]
    assert not proof.passed and proof.reason == "attention is one node in 0 of 1 places"
    assert not list((tmp_path / "export").iterdir())  # and no label was flipped


def test_int8_that_collapses_falls_back_to_other_settings_and_says_so(calibrated, traced_before, tmp_path, monkeypatch):
    smallest = int8_settings()[0]

    def collapse_at_first(graph, target, settings, largest):
        quantise(graph, target, settings, largest)
        if settings == smallest:
            broken = onnx.load(target)
            (last,) = (node for node in broken.graph.node if "logits" in node.output)
            last.output[0] = "uneven"
            broken.graph.initializer.append(onnx.numpy_helper.from_array(np.array([99, -99], np.float32), "sure"))
            broken.graph.node.append(onnx.helper.make_node("Add", ["uneven", "sure"], ["logits"]))
            onnx.save(broken, target)

    monkeypatch.setattr(exporting, "quantise", collapse_at_first)
    proof = export(calibrated, tmp_path, ["onnx-int8"], drop=0.3, agreement=0.7)["onnx-int8"]
    assert proof.passed and (tmp_path / "onnx-int8" / "model.onnx").is_file()
    assert [attempt["settings"]["fp32_products"] for attempt in proof.tried] == [smallest.fp32_products]
    assert "agrees with the model on 0.0000" in proof.tried[0]["reason"]
    assert proof.settings != proof.tried[0]["settings"]
    monkeypatch.setattr(exporting, "int8_settings", lambda: (smallest,))
    proof = export(calibrated, tmp_path, ["onnx-int8"], drop=0.3, agreement=0.7)["onnx-int8"]
    assert not proof.passed and not (tmp_path / "onnx-int8").exists()


@pytest.mark.slow
def test_weights_past_the_size_of_a_file_lie_beside_the_graph(tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "LARGEST_FILE", 0)
    proofs = export(tiny_bert, tmp_path, ["onnx-fp32", "onnx-int8"])
    reference = distill.load(tiny_bert).logits(TEXTS)
    for name, tolerance in (("onnx-fp32", 1e-4), ("onnx-int8", 0.25)):
        folder = tmp_path / name
        (data,) = (path for path in folder.iterdir() if path.name.startswith("model.onnx") and path.suffix != ".onnx")
        np.testing.assert_allclose(distill.load(folder).logits(TEXTS), reference, atol=tolerance)
        assert proofs[name].size_bytes == data.stat().st_size + (folder / "model.onnx").stat().st_size


def assert_openvino_formats_agree(folder, target):
    proofs = export(folder, target, ["openvino-bf16", "openvino-int8"])
    reference = distill.load(folder).logits(TEXTS)
    for name, tolerance in (("openvino-bf16", 0.1), ("openvino-int8", 0.4)):
        assert proofs[name].passed, proofs[name]
        classifier = distill.load(target / name)
        assert classifier.session.format == name
        logits = classifier.logits(TEXTS)
        assert np.abs(logits - reference).max() <= tolerance * max(1, np.abs(reference).max()), name
        alone = np.concatenate([classifier.logits([text]) for text in TEXTS[:5]])
        np.testing.assert_allclose(alone, logits[:5], atol=tolerance)
        assert_many_batches_answer_as_one_does(target / name)


@pytest.mark.slow
def test_openvino_formats_agree_with_torch_and_run_in_the_same_predictor(calibrated, traced_before, tmp_path):
    pytest.importorskip("nncf")
    assert_openvino_formats_agree(calibrated, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", OTHERS)
def test_openvino_formats_of_other_architectures_agree_too(architecture, tmp_path):
    pytest.importorskip("nncf")
    assert_openvino_formats_agree(make_classifier(tmp_path / "model", architecture), tmp_path / "export")


@pytest.mark.parametrize("missing", ["openvino", "nncf"])
def test_formats_without_their_extra_are_refused_before_anything_is_written(
    missing, recipe_path, tiny_bert, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(DeviceError, match="is not installed"):
        commands.export(
            tiny_bert, ["onnx-fp32", "openvino-int8"], recipe=load_recipe(recipe_path), output=tmp_path / "export"
        )
    assert not (tmp_path / "export").exists()
