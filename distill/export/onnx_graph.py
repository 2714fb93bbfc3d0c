"""Trace a classifier to an ONNX graph in which attention is one node from the start, so no optimizer has to find it."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from distill.errors import ModelError
from distill.models.calibration import temperature_of
from distill.models.first_token import ARCHITECTURES, first_token_only, last_layer
from distill.models.loading import INPUTS
from distill.models.ngram_config import MODEL_TYPE, is_ngrams

OPSET = 20  # the first with a Gelu node; from 23 attention is a node too, but onnxruntime's quantizer breaks it
FUSED_ATTENTION = "MultiHeadAttention"
LARGEST_FILE = 2_000_000_000  # bytes; protobuf refuses messages of 2 GiB, so larger weights go to a second file


def check_architecture(model_type: str) -> None:
    """Raise `ModelError` unless `trace` knows the attention mask of models of this type (not windowed or causal)."""
    if model_type not in (*ARCHITECTURES, MODEL_TYPE):
        known = ", ".join(sorted(ARCHITECTURES))
        raise ModelError(
            f"{model_type}: not an architecture that distill exports to ONNX or OpenVINO ({known})",
            hint="--set export.formats=[torch-fp16] leaves those formats out; or use a student of another architecture",
        )


def trace(model: PreTrainedModel, path: Path) -> None:
    """Write the graph of a classifier: int64 input_ids and attention_mask in, calibrated fp32 logits out, any shape.

    The trace writes attention as ONNX Runtime's MultiHeadAttention node, through extension points of transformers and
    torch, because with transformers 5 no optimizer finds the pattern afterwards (0 of 6 layers fused, without a
    message). Residual sums are not fused with the LayerNorm after them: on a CPU, one SkipLayerNormalization takes
    twice as long as the three nodes.
    """
    check_architecture(model.config.model_type)
    example = {name: torch.ones(2, 16, dtype=torch.long) for name in INPUTS}
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    traced = copy.deepcopy(model).cpu().eval()
    if not is_ngrams(model.config):
        AttentionInterface.register("distill_onnx", _attention_node)
        AttentionMaskInterface.register("distill_onnx", _padding_mask)
        traced.set_attn_implementation("distill_onnx")
    with quiet(), first_token_only(last_layer(traced)):
        program = torch.onnx.export(
            _LogitsOnly(traced).eval(),
            kwargs=example,
            input_names=list(example),
            output_names=["logits"],
            dynamic_shapes=dict.fromkeys(example, free),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        graph = program.model
        # Later rewrites make the types and shapes inside the graph wrong, and onnxruntime's quantizer trusts them.
        inner = (value for node in graph.graph for value in node.outputs if value not in graph.graph.outputs)
        for value in (*inner, *graph.graph.initializers.values()):
            value.shape = value.type = None
        _forget_where_it_was_traced(graph)
        large = sum(weight.const_value.nbytes for weight in graph.graph.initializers.values()) > LARGEST_FILE
        onnx_ir.save(graph, path, external_data=f"{path.name}.data" if large else None)


def _forget_where_it_was_traced(model: onnx_ir.Model) -> None:
    """Drop torch's notes on every node, which hold stack traces and so the paths of this machine."""
    noted: list[Any] = [model, *model.graph.initializers.values()]
    for graph in (model.graph, *model.functions.values()):
        nodes = list(graph.all_nodes())
        noted += [graph, *graph.inputs, *nodes, *(value for node in nodes for value in node.outputs)]
    for part in noted:
        part.metadata_props.clear()


class _LogitsOnly(torch.nn.Module):
    """The classifier as a function of ids and mask that returns logits; token types are constant zeros in the graph.

    The logits are calibrated in fp32, as in TorchSession.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.temperature = temperature_of(model.config)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits.float() / self.temperature


def _attention_node(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Trace attention as one com.microsoft node; tensors are (batch, heads, tokens, size), the mask (batch, tokens)."""
    batch, heads, tokens, size = query.shape
    inputs = [tensor.transpose(1, 2).reshape(batch, tensor.shape[2], heads * size) for tensor in (query, key, value)]
    output = torch.onnx.ops.symbolic(
        f"com.microsoft::{FUSED_ATTENTION}",
        [*inputs, None, attention_mask],
        {"num_heads": heads, "scale": scaling or size**-0.5},
        dtype=query.dtype,
        shape=inputs[0].shape,
        version=1,
    )
    return output.reshape(batch, tokens, heads, size), None


def _padding_mask(*_: Any, attention_mask: torch.Tensor, **__: Any) -> torch.Tensor:
    """Return the mask that the node needs: int32, 1 for a token and 0 for padding, shape (batch, tokens)."""
    return attention_mask.to(torch.int32)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress and deprecation warnings of exporters."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
