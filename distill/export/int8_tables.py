"""Store the embedding tables of a graph in int8, each row with a scale of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

LARGEST = 127  # in int8
NARROW = 64  # columns; the scale of a narrower row would take more than a sixteenth of the row's own bytes
ONE = "int8_tables_one"  # the scale of whole numbers


def round_tables(model: onnx.ModelProto) -> None:
    """Store each table of embeddings in an fp32 graph, (rows, width), in int8.

    Each row has a scale, because the scale of a whole table is set by its widest row, which is often a token that no
    text uses. Besides, a row is then rounded alike whatever other rows there are, so that trimming the vocabulary
    changes no embedding. Narrow tables have one scale; those of n-grams are made for it (see ngram_graph.py).
    """
    weights = {weight.name: weight for weight in model.graph.initializer}
    weights[ONE] = numpy_helper.from_array(np.float32(1), ONE)
    model.graph.initializer.append(weights[ONE])
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        table = weights.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or table.data_type != onnx.TensorProto.FLOAT or len(table.dims) != 2 or _axis(node):
            nodes.append(node)
            continue
        names = f"{table.name}_int8", f"{table.name}_scales"
        by_row = table.dims[1] >= NARROW
        if names[0] not in weights:
            for name, value in zip(names, _rounded(numpy_helper.to_array(table), by_row), strict=True):
                weights[name] = numpy_helper.from_array(value, name)
                model.graph.initializer.append(weights[name])
        nodes += _reading(node, *names, by_row)
    replace_nodes(model.graph, nodes)


def replace_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Give the graph other nodes, and drop the constants that none of them reads."""
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for constant in [constant for constant in graph.initializer if constant.name not in used]:
        graph.initializer.remove(constant)


def _rounded(table: np.ndarray, by_row: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the table in int8, (rows, width), and its scales: fp32 (rows, 1) if `by_row`, else ()."""
    scales = np.asarray(np.abs(table).max(axis=1, keepdims=True) if by_row else np.abs(table).max()) / LARGEST
    return np.rint(table / np.where(scales > 0, scales, 1)).astype(np.int8), scales.astype(np.float32)


def _reading(node: onnx.NodeProto, table: str, scales: str, by_row: bool) -> list[onnx.NodeProto]:
    """Return the nodes that read rows of the int8 `table` as fp32, in place of `node`, which read the fp32 one."""
    (made,), ids = node.output, node.input[1]
    row, whole, scale = (f"{made}_{part}" for part in ("row", "whole", "scale"))
    read = helper.make_node("Gather", [table, ids], [row], name=row)
    if not by_row:
        return [read, helper.make_node("DequantizeLinear", [row, scales], [made], name=node.name)]
    return [
        read,
        helper.make_node("DequantizeLinear", [row, ONE], [whole], name=whole),  # to fp32
        helper.make_node("Gather", [scales, ids], [scale], name=scale),
        helper.make_node("Mul", [whole, scale], [made], name=node.name),
    ]


def _axis(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
