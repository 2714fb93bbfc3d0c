"""Which fused nodes are counted, and which of the counts is a fault; whole models are in test_export."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from transformers import AutoModelForSequenceClassification, BertConfig

from distill.errors import GPU_EXTRA, DeviceError
from distill.export import fusion
from distill.export.fusion import Executed, count_fused_nodes, missing_fusions
from distill.export.onnx_graph import trace
from distill.inference.runtimes import load_cuda_libraries, onnx_runs_on_cuda
from distill.inference.sessions import OnnxSession, _run_bound
from distill.inference.torch_session import TorchSession

RNG = np.random.default_rng(0)
ONE_LAYER = AutoModelForSequenceClassification.from_config(
    BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=16, vocab_size=40)
)
WHOLE = ["MultiHeadAttention", *["LayerNormalization"] * 3, "Gelu"]


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """The mean of a text's embeddings and a head: nothing of a BERT, and one cast to float."""
    shapes = {"table": (40, 8), "head": (8, 2)}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"], name="embeddings"),
        helper.make_node("Cast", ["attention_mask"], ["mask"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"], name="unsqueeze"),
        helper.make_node("Mul", ["x", "wide"], ["kept"], name="mask"),
        helper.make_node("ReduceMean", ["kept", "tokens"], ["mean"], name="mean", keepdims=0),
        helper.make_node("MatMul", ["mean", "head"], ["logits"], name="head"),
    ]
    weights = [numpy_helper.from_array(RNG.normal(size=s).astype(np.float32), n) for n, s in shapes.items()]
    axes = [numpy_helper.from_array(np.array([axis]), name) for name, axis in (("last", 2), ("tokens", 1))]
    inputs = ("input_ids", "attention_mask")
    made = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in inputs],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [*weights, *axes],
    )
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


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
    assert missing_fusions(count_fused_nodes(graph, ONE_LAYER, "cuda")) == expected


def test_fused_nodes_are_counted_as_this_machine_ran_them(graph):
    found = count_fused_nodes(graph, ONE_LAYER, "cpu")
    assert found["attention"] == found["gelu"] == {"fused": 0, "expected": 1} and found["stray_casts"] == 1
    assert missing_fusions(found).startswith(
        "attention is one node in 0 of 1 places; LayerNorm is one node in 0 of 3 places"
    )


def test_bound_inputs_and_outputs_change_no_logit(graph):
    session = OnnxSession(graph, "cpu")
    for tokens in (5, 9):
        ids = np.random.default_rng(tokens).integers(5, 29, (3, tokens))
        mask = np.ones_like(ids)
        mask[1, 4:] = 0
        feed = {"input_ids": ids, "attention_mask": mask}
        np.testing.assert_array_equal(_run_bound(session._session, feed, "cpu"), session.run(ids, mask))


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.skipif(onnx_runs_on_cuda(), reason="this onnxruntime has a CUDA provider")
def test_a_session_that_cannot_use_the_gpu_says_why_and_what_to_type(graph, monkeypatch, capsys):
    with pytest.raises(DeviceError, match="has no CUDA provider") as refused:
        OnnxSession(graph, "cuda")
    assert refused.value.hint == GPU_EXTRA
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    for said, hint in (("Failed to load libcublas.so.13", GPU_EXTRA), ("", "use the CPU: --device cpu")):
        monkeypatch.setattr(onnxruntime, "preload_dlls", lambda said=said: print(said))
        load_cuda_libraries.cache_clear()
        with pytest.raises(DeviceError, match=f"could not start CUDA.*{said}") as refused:
            OnnxSession(graph, "cuda")
        assert refused.value.hint == hint
    load_cuda_libraries.cache_clear()
    assert capsys.readouterr().out == ""  # where only results may go


@pytest.mark.gpu
@pytest.mark.skipif(not onnx_runs_on_cuda(), reason="this onnxruntime has no CUDA provider")
def test_a_cuda_session_computes_nothing_on_the_cpu_and_agrees_with_torch(tiny_bert, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    trace(model, tmp_path / "model.onnx")
    assert missing_fusions(count_fused_nodes(tmp_path / "model.onnx", model, "cuda")) is None
    ids = np.random.default_rng(0).integers(5, 29, (3, 9))
    expected = TorchSession(model, "cpu").run(ids, np.ones_like(ids))
    found = OnnxSession(tmp_path / "model.onnx", "cuda").run(ids, np.ones_like(ids))
    np.testing.assert_allclose(found, expected, atol=1e-2)
