"""Isolate the few wide input channels of feed-forward products, so that int8 keeps the precision of the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from distill.export.int8_tables import replace_nodes

WIDE_CHANNELS = 4  # for each product; 16 or 64 were hardly better
RANGE_TEXTS = 100  # enough to find the wide channels, which are the same for every text
ZERO_AT_ZERO = ("Gelu", "Relu")  # activations that map zero to zero
ACTIVATIONS = ("Gelu", "Relu", "Mul", "Div", "Erf", "Tanh", "Sigmoid")  # and the nodes that some of them are traced to
OWN_ACTIVATION = "_wide_activation"  # name suffix of the activation of isolated channels


def widest(graph: Path, batches: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Run `graph` on `batches` of tokens; return the largest magnitude of each channel of feed-forward inputs.

    Keys are the names of the inputs, values are fp32 (channels,).
    """
    model = onnx.load(graph, load_external_data=False)
    names = list(dict.fromkeys(node.input[0] for node, _ in feed_forward(model)))
    if not names:  # the feed-forward middle is as wide as the rest of the model
        return {}
    model.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    largest: dict[str, np.ndarray] = {}
    path = graph.with_name("widest.onnx")  # beside the graph, whose weights may be a second file
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


def isolate(model: onnx.ModelProto, largest: dict[str, np.ndarray], *, leave: Sequence[str] = ()) -> list[str]:
    """Change the graph so that it computes the same but loses less in int8; return the nodes that must stay fp32.

    `largest` comes from `widest`. Products named in `leave` stay as they are.

    All activations of a tensor share one int8 scale, so one channel that is ten times as wide costs the others three
    bits. BERT models have such channels, the same ones for every text (Bondarenko et al. 2021). There are two remedies:

    - The output of a LayerNorm: wide channels are divided by a factor, and the weights after them multiplied by it
      (SmoothQuant, Xiao et al. 2023). This takes almost no time.
    - The output of an activation is too wide for that, because the weights would lose more. The widest channels are
      computed separately in fp32, from the layer's input to its output (as in LLM.int8(), Dettmers et al. 2022). The
      large products have zero weights for them, because a mask would read and write the whole tensor.
    """
    weights = {weight.name: weight for weight in model.graph.initializer}
    replaced: dict[str, list[onnx.NodeProto]] = {}
    fp32: list[str] = []

    def constant(name: str, value: np.ndarray) -> str:
        model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def array(name: str) -> np.ndarray:
        return numpy_helper.to_array(weights[name])

    middles = {middle.widen.name: middle for middle in _middles(model) if not {*middle.products} & {*leave}}
    for node, narrows in feed_forward(model):
        if node.name in leave or narrows:
            continue
        source, name, weight = node.input[0], node.name, array(node.input[1])
        if name in middles and len(largest[middles[name].narrow.input[0]]) > WIDE_CHANNELS:
            _, biased, bias, activation, narrow = middles[name]
            wide = np.sort(np.argsort(-largest[narrow.input[0]])[:WIDE_CHANNELS])
            parts = {"columns": weight[:, wide], "bias": array(bias)[wide], "rows": array(narrow.input[1])[wide]}
            columns, own_bias, rows = (constant(f"{name}_wide_{part}", value) for part, value in parts.items())
            others = np.ones(weight.shape[1], np.float32)
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
    replace_nodes(model.graph, [new for node in model.graph.node for new in replaced.get(node.name, [node])])
    return fp32


class Middle(NamedTuple):
    """A feed-forward part: the widening product, the sum with its bias, the activation and the narrowing product."""

    widen: onnx.NodeProto
    biased: onnx.NodeProto
    bias: str
    activation: onnx.NodeProto
    narrow: onnx.NodeProto

    @property
    def products(self) -> tuple[str, str]:
        return self.widen.name, self.narrow.name


def _middles(model: onnx.ModelProto) -> Iterator[Middle]:
    """Yield each chain of widening product, bias, activation and narrowing product whose results have no other use.

    The bias itself may be shared, because a tracer stores equal constants, such as those of a new model, only once.
    """
    products = {node.name for node, _ in feed_forward(model)}
    constants = {weight.name for weight in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node}
    uses = Counter(name for node in model.graph.node for name in node.input)
    for narrow, narrows in feed_forward(model):
        activation = makers.get(narrow.input[0])
        if not narrows or activation is None or activation.op_type not in ZERO_AT_ZERO:
            continue
        biased = makers.get(activation.input[0])
        if biased is None or biased.op_type != "Add":
            continue
        widen = next((makers[name] for name in biased.input if name in makers), None)
        bias = next((name for name in biased.input if name in constants), "")
        between = [activation.output[0], biased.output[0], *(widen.output if widen else ())]
        if widen and bias and widen.name in products and all(uses[name] == 1 for name in between):
            yield Middle(widen, biased, bias, activation, narrow)


def feed_forward(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, bool]]:
    """Yield the products of the feed-forward parts, in order, and whether each narrows: reads the middle of its part.

    The middle is known by its activation, since a pruned one may be narrower than the rest of the model. A product that
    widens a LayerNorm's output, such as one of narrow embeddings, counts too.
    """
    shapes = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    products = [node for node in model.graph.node if _multiplies(node, shapes)]
    widening = {node.name: _behind_activation(node, makers, shapes) for node in products}
    widen = {name for names in widening.values() for name in names}
    for node in products:
        inputs, outputs = shapes[node.input[1]]
        maker = makers.get(node.input[0])
        reads_norm = maker is not None and maker.op_type == "LayerNormalization"
        if widening[node.name]:
            yield node, True
        elif node.name in widen or (reads_norm and inputs < outputs):
            yield node, False


def _multiplies(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return node.op_type == "MatMul" and len(shapes.get(node.input[1], ())) == 2


def _behind_activation(
    product: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], shapes: Mapping[str, tuple[int, ...]]
) -> set[str]:
    """Return the names of the products whose results reach `product` through an activation, gates and biases alone."""
    found: set[str] = set()
    waiting, seen = [product.input[0]], set()
    while waiting:
        name = waiting.pop()
        node = makers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if _multiplies(node, shapes):
            found.add(node.name)
        elif node.op_type in ACTIVATIONS or (node.op_type == "Add" and any(term in shapes for term in node.input)):
            waiting += node.input
    is_activated = any(makers[name].op_type in ACTIVATIONS for name in seen)
    return found if is_activated else set()
