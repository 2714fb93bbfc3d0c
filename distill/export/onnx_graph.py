"""Trace a classifier to an ONNX graph."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import torch
from transformers import PretrainedConfig, PreTrainedModel

from distill.errors import ModelError
from distill.export.attention import ONE_NODE, attention_as_one_node
from distill.models.config import INPUTS, TOKEN_TYPES, inputs_of, is_ngrams
from distill.models.first_token import first_token_only, last_layer
from distill.models.pruning import without_empty_parts
from distill.models.truncation import CONFIG_KEY as TRUNCATION_KEY

OPSET = 20  # the first with a Gelu node; from 23 attention is a node too, but onnxruntime's quantizer breaks it
LARGEST_FILE = 2_000_000_000  # bytes; protobuf refuses messages of 2 GiB, so larger weights go to a second file


def check_architecture(config: PretrainedConfig) -> None:
    """Raise `ModelError` if no graph can be made of a model with this configuration."""
    if config.is_encoder_decoder:
        raise ModelError(
            f"{config.model_type}: an encoder with a decoder, which distill does not export to ONNX or OpenVINO",
            hint="--set export.formats=[torch-fp16] leaves those formats out; or use a student of another architecture",
        )


def graph_inputs(config: PretrainedConfig) -> tuple[str, ...]:
    """Return the inputs of a model's graph: token types too if it reads pairs and tells their texts apart by them."""
    reads_pairs = getattr(config, TRUNCATION_KEY, None) == "longest_first"
    return tuple(inputs_of(config, dict.fromkeys([*INPUTS, TOKEN_TYPES] if reads_pairs else INPUTS, True)))


def trace(model: PreTrainedModel, path: Path) -> None:
    """Write the graph of a classifier: int64 input_ids and attention_mask in, calibrated fp32 logits out, any shape.

    A model of pairs takes token_type_ids too, if it has several. Otherwise all token types are zeros in the graph.

    Where it can, the trace writes attention as one node of ONNX Runtime (see attention.py), through extension points of
    transformers and torch, because with transformers 5 no optimizer finds the pattern afterwards (0 of 6 layers fused,
    without a message). Other architectures are traced as they compute. Residual sums are not fused with the LayerNorm
    after them: on a CPU, one SkipLayerNormalization takes twice as long as the three nodes.
    """
    check_architecture(model.config)
    example = {name: torch.ones(2, 16, dtype=torch.long) for name in graph_inputs(model.config)}
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    traced = without_empty_parts(copy.deepcopy(model).cpu().eval())
    known = model.config.model_type in ONE_NODE
    if not known and not is_ngrams(model.config):
        traced.set_attn_implementation("eager")
    one_node = attention_as_one_node(traced) if known else contextlib.nullcontext()
    with quiet(), one_node, first_token_only(last_layer(traced)):
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


def describe(path: Path, about: Mapping[str, str], text: str) -> None:
    """Write into an ONNX file what it is: `about` as metadata_props, the `text` as its doc string."""
    model = onnx.load(path, load_external_data=False)
    model.doc_string = text
    onnx.helper.set_model_props(model, dict(about))
    onnx.save(model, path)


class _LogitsOnly(torch.nn.Module):
    """The classifier as a function that returns logits; without token types, these are constant zeros in the graph."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        given = {"input_ids": input_ids, "attention_mask": attention_mask, TOKEN_TYPES: token_type_ids}
        return self.model(**inputs_of(self.model.config, given)).logits.float()


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
