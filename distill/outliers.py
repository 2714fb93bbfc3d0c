"""The few wide input channels of a graph's feed-forward products, kept from spoiling the int8 of all the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

WIDE_CHANNELS = 4  # of each product's inputs; 16 or 64 were hardly better
RANGE_TEXTS = 100  # enough to find them: they are the same for every text


def widest(graph: Path, batches: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the largest magnitude of each channel, fp32 (channels,), of every feed-forward product's input, by name.

    `graph` runs on `batches` of tokens.
    """
    model = onnx.load(graph, load_external_data=False)
    names = list(dict.fromkeys(node.input[0] for node, _ in feed_forward(model)))
    if not names:  # a model whose middle is as wide as the rest
        return {}
    model.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    largest: dict[str, np.ndarray] = {}
    path = graph.with_name("widest.onnx")  # beside the graph, whose weights may be in a file of their own
    onnx.save(model, path)
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    finally:
        path.unlink()
    for batch in batches:
        for name, values in zip(names, session.run(names, batch), strict=True):
            found = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0)
            largest[name] = np.maximum(largest.get(name, 0), found)
    return largest


def isolate(graph: Path, target: Path, largest: dict[str, np.ndarray], *, leave: Sequence[str] = ()) -> list[str]:
    """Write a graph of the same function that loses less as int8; return the nodes of it that must stay fp32.

    `largest` is what `widest` found; products named in `leave` stay as they are.

    A tensor's activations share one int8 scale, so one channel ten times as wide costs all others three bits. BERTs
    have such channels, the same for every text (Bondarenko et al. 2021). What a LayerNorm made is divided by how much
    wider than the next it is, and the weights multiplied by that (SmoothQuant, Xiao et al. 2023): it costs next to no
    time. What a Gelu made is so wide that the weights would lose more than is won: there the widest channels become a
    product of their own, in fp32 (LLM.int8(), Dettmers et al. 2022).
    """
    model = onnx.load(graph)
    weights = {weight.name: weight for weight in model.graph.initializer}
    replaced: dict[str, list[onnx.NodeProto]] = {}
    fp32: list[str] = []

    def constant(name: str, value: np.ndarray) -> str:
        model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    for node, (inputs, outputs) in feed_forward(model):
        if node.name in leave:
            continue
        source, name, width = node.input[0], node.name, largest[node.input[0]]
        wide_first = np.argsort(-width)
        weight = numpy_helper.to_array(weights[node.input[1]])
        if inputs < outputs:
            factor = np.maximum(1, width / (width[wide_first[WIDE_CHANNELS]] or 1)).astype(np.float32)
            replaced[name] = [
                helper.make_node("Mul", [source, constant(f"{name}_narrowing", 1 / factor)], [f"{name}_narrowed"]),
                helper.make_node(
                    "MatMul", [f"{name}_narrowed", constant(f"{name}_widened", weight * factor[:, None])], node.output,
                    name=name,
                ),
            ]  # fmt: skip
        else:
            kept = np.sort(wide_first[:WIDE_CHANNELS])
            others = np.ones(inputs, np.float32)
            others[kept] = 0
            picked, wide = f"{name}_picked", f"{name}_wide"
            fp32 += [picked, wide]
            replaced[name] = [
                helper.make_node("Mul", [source, constant(f"{name}_others", others)], [f"{name}_narrow"]),
                helper.make_node("MatMul", [f"{name}_narrow", node.input[1]], [f"{name}_most"], name=name),
                helper.make_node("Gather", [source, constant(f"{name}_kept", kept)], [picked], name=picked, axis=-1),
                helper.make_node("MatMul", [picked, constant(f"{name}_rows", weight[kept])], [wide], name=wide),
                helper.make_node("Add", [f"{name}_most", wide], node.output),
            ]  # fmt: skip
    nodes = [new for node in model.graph.node for new in replaced.get(node.name, [node])]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for weight in [weight for weight in model.graph.initializer if weight.name not in used]:
        model.graph.initializer.remove(weight)
    beside = graph.with_name(f"{graph.name}.data").is_file()
    onnx.save(model, target, save_as_external_data=beside, location=f"{target.name}.data")
    return fp32


def feed_forward(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, tuple[int, int]]]:
    """Yield the two products of each layer's feed-forward part, and whatever else widens or narrows: node and shape."""
    shapes = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    for node in model.graph.node:
        shape = shapes.get(node.input[1], ()) if node.op_type == "MatMul" else ()
        if len(shape) == 2 and shape[0] != shape[1]:
            yield node, shape
