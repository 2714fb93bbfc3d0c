"""The few wide input channels of a graph's feed-forward products, kept from spoiling the int8 of all the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

WIDE_CHANNELS = 4  # of each product's inputs; 16 or 64 were hardly better
RANGE_TEXTS = 100  # enough to find them: they are the same for every text
ZERO_AT_ZERO = ("Gelu", "Relu")  # activations that leave a channel of zeros one of zeros
OWN_ACTIVATION = "_wide_activation"  # how the name of an isolated channels' activation ends


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
    time. What an activation made is so wide that the weights would lose more than is won: there the widest channels are
    computed on their own, from the layer's input to its output, in fp32 (after LLM.int8(), Dettmers et al. 2022), and
    the great products see zeros in their place: masking would read and write the whole middle.
    """
    model = onnx.load(graph)
    weights = {weight.name: weight for weight in model.graph.initializer}
    replaced: dict[str, list[onnx.NodeProto]] = {}
    fp32: list[str] = []

    def constant(name: str, value: np.ndarray) -> str:
        model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def array(name: str) -> np.ndarray:
        return numpy_helper.to_array(weights[name])

    middles = {middle.widen.name: middle for middle in _middles(model) if not {*middle.products} & {*leave}}
    for node, (inputs, outputs) in feed_forward(model):
        if node.name in leave or inputs > outputs:
            continue
        source, name, weight = node.input[0], node.name, array(node.input[1])
        if name in middles:
            _, biased, bias, activation, narrow = middles[name]
            wide = np.sort(np.argsort(-largest[narrow.input[0]])[:WIDE_CHANNELS])
            parts = {"columns": weight[:, wide], "bias": array(bias)[wide], "rows": array(narrow.input[1])[wide]}
            columns, own_bias, rows = (constant(f"{name}_wide_{part}", value) for part, value in parts.items())
            others = np.ones(outputs, np.float32)
            others[wide] = 0
            weight = weight * others
            kept_bias = constant(f"{name}_kept_bias", array(bias) * others)
            terms = [kept_bias if term == bias else term for term in biased.input]
            replaced[biased.name] = [helper.make_node("Add", terms, biased.output, name=biased.name)]
            own, wide_out, most = f"{name}_wide", f"{narrow.name}_wide", f"{narrow.name}_most"
            fp32 += [own, wide_out]
            replaced[narrow.name] = [
                helper.make_node("MatMul", [source, columns], [own], name=own),
                helper.make_node("Add", [own, own_bias], [f"{own}_biased"]),
                helper.make_node(activation.op_type, [f"{own}_biased"], [f"{own}_middle"], name=own + OWN_ACTIVATION),
                helper.make_node("MatMul", [f"{own}_middle", rows], [wide_out], name=wide_out),
                helper.make_node("MatMul", narrow.input, [most], name=narrow.name),
                helper.make_node("Add", [most, wide_out], narrow.output),
            ]
            replaced[narrow.name][2].attribute.extend(activation.attribute)
        width = largest[source]
        factor = np.maximum(1, width / (np.sort(width)[-1 - WIDE_CHANNELS] or 1)).astype(np.float32)
        replaced[name] = [
            helper.make_node("Mul", [source, constant(f"{name}_narrowing", 1 / factor)], [f"{name}_narrowed"]),
            helper.make_node(
                "MatMul", [f"{name}_narrowed", constant(f"{name}_widened", weight * factor[:, None])], node.output,
                name=name,
            ),
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


class Middle(NamedTuple):
    """The middle of a feed-forward part: the products before and after it, between them a bias' sum and activation."""

    widen: onnx.NodeProto
    biased: onnx.NodeProto
    bias: str
    activation: onnx.NodeProto
    narrow: onnx.NodeProto

    @property
    def products(self) -> tuple[str, str]:
        return self.widen.name, self.narrow.name


def _middles(model: onnx.ModelProto) -> Iterator[Middle]:
    """Yield each widening product, bias, activation and narrowing product that follow one another and feed no other.

    The bias itself may be shared: a tracer keeps equal constants, such as those of a new model, once.
    """
    products = {node.name for node, _ in feed_forward(model)}
    constants = {weight.name for weight in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node}
    uses = Counter(name for node in model.graph.node for name in node.input)
    for narrow, (inputs, outputs) in feed_forward(model):
        activation = makers.get(narrow.input[0])
        if inputs < outputs or activation is None or activation.op_type not in ZERO_AT_ZERO:
            continue
        biased = makers.get(activation.input[0])
        if biased is None or biased.op_type != "Add":
            continue
        widen = next((makers[name] for name in biased.input if name in makers), None)
        bias = next((name for name in biased.input if name in constants), "")
        between = [activation.output[0], biased.output[0], *(widen.output if widen else ())]
        if widen and bias and widen.name in products and all(uses[name] == 1 for name in between):
            yield Middle(widen, biased, bias, activation, narrow)


def feed_forward(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, tuple[int, int]]]:
    """Yield the two products of each layer's feed-forward part, and whatever else widens or narrows: node and shape."""
    shapes = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    for node in model.graph.node:
        shape = shapes.get(node.input[1], ()) if node.op_type == "MatMul" else ()
        if len(shape) == 2 and shape[0] != shape[1]:
            yield node, shape
