"""Which parts of a graph become int8, and that quantising tells nobody of it."""

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from distill.export.int8 import Int8Settings, quantise
from distill.export.outliers import widest

RNG = np.random.default_rng(0)
IDS = {"ids": np.arange(12)[None] % 40}


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """A table of embeddings, a feed-forward part and a head on the first token."""
    shapes = {"table": (40, 16), "first": (16, 64), "middle": (64,), "second": (64, 16), "head": (16, 2), "bias": (2,)}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"], name="embeddings"),
        helper.make_node("MatMul", ["x", "first"], ["h"], name="widen"),
        helper.make_node("Add", ["h", "middle"], ["m"], name="biased"),
        helper.make_node("Gelu", ["m"], ["g"], name="gelu"),
        helper.make_node("MatMul", ["g", "second"], ["y"], name="narrow"),
        helper.make_node("Gather", ["y", "zero"], ["token"], name="first_token", axis=1),
        helper.make_node("Gemm", ["token", "head", "bias"], ["logits"], name="head"),
    ]
    weights = [numpy_helper.from_array(RNG.normal(size=s).astype(np.float32), n) for n, s in shapes.items()]
    made = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 2])],
        [*weights, numpy_helper.from_array(np.array(0), "zero")],
    )
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_what_stays_in_fp32_is_what_the_settings_name(graph, tmp_path):
    def kept(**settings):
        quantise(graph, tmp_path / "int8.onnx", Int8Settings(**{"outliers": False} | settings), widest(graph, [IDS]))
        made = onnx.load(tmp_path / "int8.onnx").graph
        products = sum(node.op_type in ("MatMul", "Gemm") for node in made.node)
        return products, {weight.name for weight in made.initializer} & {"table", "second", "head"}

    assert kept() == (0, set())
    assert kept(fp32_products=("feed_forward",)) == (1, {"second"})
    assert kept(fp32_products=("head",)) == (1, {"head"})
    assert kept(embeddings=False) == (0, {"table"})
    assert kept(outliers=True) == (2, set())  # the wide channels of the middle, into it and out of it
    assert kept(outliers=True, fp32_products=("feed_forward",)) == (1, {"second"})  # whole already


@pytest.mark.parametrize("width", [16, 64])
def test_a_table_in_int8_is_read_with_at_most_half_a_step_of_error(tmp_path, width):
    table = RNG.normal(size=(40, width)).astype(np.float32) * np.linspace(0, 5, 40, dtype=np.float32)[:, None]
    step = np.abs(table).max(axis=1, keepdims=True) / 127 if width == 64 else np.abs(table).max() / 127
    assert (np.abs(read(table, np.arange(40), tmp_path) - table) <= step * 0.501).all()


def test_a_row_of_a_wide_table_is_rounded_alike_whatever_the_others_are(tmp_path):
    table = RNG.normal(size=(40, 64)).astype(np.float32)
    kept = np.array([1, 5, 30])
    others = table.copy()
    others[0] *= 100
    wanted = read(table, kept, tmp_path)
    np.testing.assert_array_equal(read(others, kept, tmp_path), wanted)
    np.testing.assert_array_equal(read(table[kept], np.arange(3), tmp_path), wanted)


def read(table, ids, folder):
    """Return the rows `ids` of a table as its int8 graph reads them."""
    made = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["rows"], name="embeddings")],
        "table",
        [helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["tokens"])],
        [helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, ["tokens", table.shape[1]])],
        [numpy_helper.from_array(table, "table")],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "fp32.onnx")
    quantise(folder / "fp32.onnx", folder / "int8.onnx", Int8Settings(outliers=False), {})
    (rows,) = onnxruntime.InferenceSession(str(folder / "int8.onnx")).run(None, {"ids": ids})
    return rows


@pytest.mark.slow
def test_nncf_reports_nothing_to_its_makers():
    pytest.importorskip("nncf")
    code = """
import os, socket, sys
def refuse(*_): raise SystemExit("a connection was tried")
socket.socket.connect = refuse
from distill.export import int8 as quantisation
quantisation.import_nncf()
import nncf.telemetry
from unittest.mock import MagicMock
assert isinstance(nncf.telemetry.wrapper.telemetry, MagicMock) or nncf.telemetry.wrapper.telemetry is MagicMock
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
