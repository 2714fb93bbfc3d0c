"""What a receipt counts, and what of it is a fault; whole models are in test_export."""

import numpy as np
import onnx
import pytest
from conftest import make_classifier
from onnx import helper
from transformers import AutoConfig, AutoModelForSequenceClassification

from distill import fusion
from distill.fusion import Executed, receipt, shortfall
from distill.onnx_graph import trace
from distill.sessions import OnnxSession, TorchSession, _run_bound, onnx_runs_on_cuda

WHOLE = ["MultiHeadAttention", *["LayerNormalization"] * 3, "Gelu"]


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """The graph of one BERT layer, its model and its configuration."""
    folder = make_classifier(tmp_path_factory.mktemp("one layer"), num_hidden_layers=1)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    trace(model, folder / "model.onnx")
    return folder / "model.onnx", model, AutoConfig.from_pretrained(folder)


def ran(kinds, provider="CUDAExecutionProvider", makes="float"):
    return [Executed(kind, provider, makes, 1) for kind in kinds]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (ran(WHOLE), None),
        (ran(WHOLE) + ran(["Shape", "Gather"], "CPUExecutionProvider", "int64"), None),
        (ran(WHOLE) + ran(["Softmax"], "CPUExecutionProvider"), "1 of the CUDA session's nodes run on the CPU"),
        (ran(WHOLE[:-1]), "Gelu is one node in 0 of 1 places"),
        (ran(WHOLE) + ran(["Cast", "Cast"]), "2 stray casts"),
        (ran(WHOLE) + ran(["Cast"], makes="int32"), None),
    ],
)
def test_what_came_apart_is_said_in_words(graph, monkeypatch, nodes, expected):
    monkeypatch.setattr(fusion, "executed", lambda *_: nodes)
    assert shortfall(receipt(graph[0], graph[2], "cuda")) == expected


def test_the_receipt_counts_what_this_machine_ran(graph, tmp_path):
    found = receipt(graph[0], graph[2], "cpu")
    assert found["attention"] == found["gelu"] == {"fused": 1, "expected": 1} and shortfall(found) is None
    broken = onnx.load(graph[0])
    (logits,) = (node for node in broken.graph.node if "logits" in node.output)
    logits.output[0] = "before"
    casts = [("before", "half", onnx.TensorProto.FLOAT16), ("half", "logits", onnx.TensorProto.FLOAT)]
    broken.graph.node.extend(helper.make_node("Cast", [first], [second], to=kind) for first, second, kind in casts)
    onnx.save(broken, tmp_path / "model.onnx")
    assert shortfall(receipt(tmp_path / "model.onnx", graph[2], "cpu")) == "2 stray casts"


def test_bound_inputs_and_outputs_change_no_logit(graph):
    session = OnnxSession(graph[0], "cpu")
    for tokens in (5, 9):
        ids = np.random.default_rng(tokens).integers(5, 29, (3, tokens))
        mask = np.ones_like(ids)
        mask[1, 4:] = 0
        feed = {"input_ids": ids, "attention_mask": mask}
        np.testing.assert_array_equal(_run_bound(session._session, feed, "cpu"), session.run(ids, mask))


@pytest.mark.gpu
@pytest.mark.skipif(not onnx_runs_on_cuda(), reason="this onnxruntime has no CUDA provider")
def test_a_cuda_session_computes_nothing_on_the_cpu_and_agrees_with_torch(graph):
    path, model, config = graph
    assert shortfall(receipt(path, config, "cuda")) is None
    ids = np.random.default_rng(0).integers(5, 29, (3, 9))
    expected = TorchSession(model, "cpu").run(ids, np.ones_like(ids))
    np.testing.assert_allclose(OnnxSession(path, "cuda").run(ids, np.ones_like(ids)), expected, atol=1e-2)
