"""Wide channels: found, taken out without changing the function, and int8 the better for it."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from distill.export.int8 import Int8Settings, quantise
from distill.export.outliers import isolate, widest

WIDE, INNER = 16, 64  # channels of a feed-forward part's input and of its middle
RNG = np.random.default_rng(0)
SCALES = np.where(np.arange(WIDE) == 3, 40.0, 1.0).astype(np.float32)  # one channel is 40 times as wide
BATCHES = [{"x": (RNG.normal(size=(6, WIDE)) * SCALES).astype(np.float32)} for _ in range(20)]


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return write_graph(tmp_path_factory.mktemp("graph") / "model.onnx", INNER)


def write_graph(path, inner):
    """A feed-forward part whose middle has wide channels too: the first four, of which one by its bias."""
    first = RNG.normal(size=(WIDE, inner)).astype(np.float32) / SCALES[:, None] / 4
    first[:, :3] *= 20
    bias = RNG.normal(size=inner).astype(np.float32) / 4
    bias[3] = 60
    second = RNG.normal(size=(inner, WIDE)).astype(np.float32) / 4
    second[:4] /= 20
    weights = {"first": first, "bias": bias, "second": second}
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["w"], name="widen"),
        helper.make_node("Add", ["w", "bias"], ["h"], name="bias"),
        helper.make_node("Gelu", ["h"], ["g"], name="gelu"),
        helper.make_node("MatMul", ["g", "second"], ["y"], name="narrow"),
    ]
    made = helper.make_graph(
        nodes,
        "feed_forward",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", WIDE])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["rows", WIDE])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def answers(path):
    session = onnxruntime.InferenceSession(str(path))
    return np.concatenate([session.run(["y"], batch)[0] for batch in BATCHES])


def isolated(path, target, largest, **options):
    model = onnx.load(path)
    fp32 = isolate(model, largest, **options)
    onnx.save(model, target)
    return fp32


def test_the_widest_of_each_channel_is_that_over_all_texts(graph):
    found = widest(graph, BATCHES)
    np.testing.assert_array_equal(found["x"], np.abs([batch["x"] for batch in BATCHES]).max(axis=(0, 1)))
    assert found["g"].shape == (INNER,) and set(np.argsort(-found["g"])[:4]) == {0, 1, 2, 3}
    assert [path.name for path in graph.parent.iterdir()] == ["model.onnx"]


def test_a_graph_without_feed_forward_products_is_left_alone(graph, tmp_path):
    model = onnx.load(graph)
    square = numpy_helper.from_array(np.eye(WIDE, dtype=np.float32), "square")
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.initializer.append(square)
    model.graph.node.append(helper.make_node("MatMul", ["x", "square"], ["y"], name="square"))
    onnx.save(model, tmp_path / "square.onnx")
    assert widest(tmp_path / "square.onnx", BATCHES) == {}
    assert isolated(tmp_path / "square.onnx", tmp_path / "isolated.onnx", {}) == []
    np.testing.assert_array_equal(answers(tmp_path / "isolated.onnx"), answers(tmp_path / "square.onnx"))


def test_the_middle_of_a_pruned_part_may_be_narrower_than_the_rest(tmp_path):
    graph = write_graph(tmp_path / "model.onnx", WIDE - 4)
    fp32 = isolated(graph, tmp_path / "isolated.onnx", widest(graph, BATCHES))
    assert fp32 == ["widen_wide", "narrow_wide"]
    np.testing.assert_allclose(answers(tmp_path / "isolated.onnx"), answers(graph), rtol=1e-4, atol=1e-3)


def test_a_middle_of_few_channels_is_not_isolated(tmp_path):
    graph = write_graph(tmp_path / "model.onnx", 4)
    assert isolated(graph, tmp_path / "isolated.onnx", widest(graph, BATCHES)) == []


@pytest.mark.parametrize("leave", [[], ["narrow"], ["widen"], ["widen", "narrow"]])
def test_isolating_changes_nothing_in_fp32(graph, tmp_path, leave):
    fp32 = isolated(graph, tmp_path / "isolated.onnx", widest(graph, BATCHES), leave=leave)
    np.testing.assert_allclose(answers(tmp_path / "isolated.onnx"), answers(graph), rtol=1e-4, atol=1e-4)
    nodes = onnx.load(tmp_path / "isolated.onnx").graph.node
    assert (len(nodes) == 4) == ("widen" in leave)  # nothing is taken out of one product alone
    assert set(fp32) <= {node.name for node in nodes} and bool(fp32) == (not leave)


def test_a_middle_that_is_read_elsewhere_too_keeps_its_channels(graph, tmp_path):
    model = onnx.load(graph)
    model.graph.node.append(helper.make_node("Identity", ["g"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["rows", INNER]))
    onnx.save(model, tmp_path / "read.onnx")
    assert isolated(tmp_path / "read.onnx", tmp_path / "isolated.onnx", widest(graph, BATCHES)) == []
    session = onnxruntime.InferenceSession(str(tmp_path / "isolated.onnx"))
    exact = onnxruntime.InferenceSession(str(tmp_path / "read.onnx"))
    for name in ("y", "z"):
        np.testing.assert_allclose(
            session.run([name], BATCHES[0])[0], exact.run([name], BATCHES[0])[0], rtol=1e-4, atol=1e-4
        )


def test_int8_loses_far_less_where_wide_channels_are_isolated(graph, tmp_path):
    exact, lost = answers(graph), {}
    for outliers in (False, True):
        settings = Int8Settings(outliers=outliers)
        quantise(graph, tmp_path / "int8.onnx", settings, widest(graph, BATCHES))
        assert "MatMulInteger" in {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
        lost[outliers] = np.abs(answers(tmp_path / "int8.onnx") - exact).mean()
    assert lost[True] < lost[False] / 3
