"""A trained classifier to torch-fp16, onnx-fp32, onnx-fp16 and onnx-int8, each proved against torch on real texts."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from optimum.utils import DummyTextInputGenerator
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, PreTrainedTokenizerBase

from distill.calibration import CONFIG_KEY
from distill.devices import Device
from distill.first_token import first_token_only, last_layer
from distill.metrics import agreement
from distill.models import ONNX_WEIGHTS, layer_count, load_config, normalized_config
from distill.predictors import (
    Classifier,
    OnnxSession,
    Session,
    TorchSession,
    calibration_temperature,
    load_torch,
    onnx_runs_on_cuda,
    weights_bytes,
)

OPSET = 20  # the first with Gelu as one node; from 23 attention is one too, which onnxruntime's quantiser breaks
FUSED_ATTENTION = "MultiHeadAttention"
# Weights become int8: of every matrix product, and of the embedding tables, which are most of a small model's bytes.
QUANTISED_OPS = ["MatMul", "Gemm", "Gather"]


@dataclass(frozen=True)
class Proof:
    """What a format costs against the torch fp32 model on the validation texts, and whether it stays within bounds."""

    format: str
    passed: bool
    reason: str | None
    accuracy: float | None
    accuracy_drop: float | None
    agreement: float | None
    max_logit_diff: float | None
    size_bytes: int
    fusion: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the entry of export.json."""
        return {name: value for name, value in asdict(self).items() if name != "format"}


def export_formats(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    label_names: Sequence[str],
    texts: Sequence[str],
    gold_labels: np.ndarray,
    folder: Path,
    formats: Sequence[str],
    *,
    max_tokens: int,
    max_accuracy_drop: float,
    device: Device,
    progress: Callable[[str], None] = lambda step: None,
) -> list[Proof]:
    """Write each of `formats` of the fp32 `model` to its own folder in `folder`; return their proofs, made on `texts`.

    The reference is `model` itself. A format that breaks its bound (more than `max_accuracy_drop` of accuracy lost,
    logits that are not finite, attention not fused) leaves no folder, and takes away the one an earlier export left.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def classify(session: Session) -> np.ndarray:
        return Classifier(session, tokenizer, label_names, max_tokens).logits(texts)

    progress("torch-fp32, the reference")
    reference = classify(TorchSession(model, device))
    proofs = []
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as work:
        graph = Path(work) / "traced.onnx"
        for name in formats:
            progress(name)
            if name in ("onnx-fp32", "onnx-int8") and not graph.is_file():
                trace(model, graph)
            made = Path(work) / name
            made.mkdir()
            with _quiet():
                WRITERS[name](model, graph, made)
            if name.startswith("onnx-"):
                config = copy.deepcopy(model.config)
                # The graph divides by it already: whoever found it beside the graph would divide a second time.
                vars(config).pop(CONFIG_KEY, None)
                config.save_pretrained(made)
            tokenizer.save_pretrained(made)
            session = _session(made, device)
            if isinstance(session, TorchSession) and device == "cpu":
                session = TorchSession(_rounding_like_fp16(session.model), device)
            logits = classify(session)
            if name == "onnx-fp16" and session.device == "cpu":
                # ONNX Runtime computes fp16 graphs in fp32 on a CPU; an overflow would first show on the user's GPU.
                rounded = classify(TorchSession(_rounding_like_fp16(model), "cpu"))
                logits = np.where(np.isfinite(rounded), logits, rounded)
            proof = _prove(name, made, model, logits, reference, gold_labels, max_accuracy_drop)
            shutil.rmtree(folder / name, ignore_errors=True)
            if proof.passed:
                os.replace(made, folder / name)
            proofs.append(proof)
    return proofs


def trace(model: PreTrainedModel, path: Path) -> None:
    """Write the graph of a classifier: int64 input_ids and attention_mask in, calibrated fp32 logits out, any shape.

    Attention is exported as ONNX Runtime's MultiHeadAttention node through the two libraries' extension points, since
    on transformers 5 no optimiser finds its pattern afterwards (0 of 6 layers fused, in silence).
    """
    generator = DummyTextInputGenerator(
        "text-classification", normalized_config(model.config), batch_size=2, sequence_length=16
    )
    example = {name: generator.generate(name, framework="pt") for name in ("input_ids", "attention_mask")}
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    traced = copy.deepcopy(model).cpu().eval()
    AttentionInterface.register("distill_onnx", _attention_node)
    AttentionMaskInterface.register("distill_onnx", _padding_mask)
    traced.set_attn_implementation("distill_onnx")
    with _quiet(), first_token_only(last_layer(traced)):
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
        # The tracer notes shapes inside the graph that later rewrites make stale; onnxruntime's quantiser trusts them.
        graph = program.model_proto
        graph.graph.ClearField("value_info")
        onnx.save(graph, path)


class _LogitsOnly(torch.nn.Module):
    """The classifier as a function of ids and mask; token types are constant zeros, and so folded into the graph.

    Its logits are calibrated, in fp32 as in TorchSession, so that the graph says what distill says.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.temperature = calibration_temperature(model.config)

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
    """Attention as one com.microsoft node; tensors are (batch, heads, tokens, size), the mask (batch, tokens)."""
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
    """The mask as the node wants it: int32, 1 for a token and 0 for padding, shape (batch, tokens)."""
    return attention_mask.to(torch.int32)


def _write_torch_fp16(model: PreTrainedModel, graph: Path, folder: Path) -> None:
    copy.deepcopy(model).half().save_pretrained(folder)


def _write_onnx_fp32(model: PreTrainedModel, graph: Path, folder: Path) -> None:
    shutil.copy(graph, folder / ONNX_WEIGHTS)


def _write_onnx_fp16(model: PreTrainedModel, graph: Path, folder: Path) -> None:
    """The graph of a half-precision model whose LayerNorms stay fp32: sums of squares can pass 65,504, fp16's largest.

    Traced anew instead of converted: onnxruntime's converter writes an invalid graph where two layers share a constant.
    """
    half = copy.deepcopy(model).half()
    for module in half.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.float()
            module.register_forward_pre_hook(lambda _, inputs: tuple(tensor.float() for tensor in inputs))
            module.register_forward_hook(lambda _, __, output: output.half())
    trace(half, folder / ONNX_WEIGHTS)


def _write_onnx_int8(model: PreTrainedModel, graph: Path, folder: Path) -> None:
    quantize_dynamic(
        graph,
        folder / ONNX_WEIGHTS,
        op_types_to_quantize=QUANTISED_OPS,
        per_channel=True,
        weight_type=QuantType.QInt8,
        # Without VNNI, x86 adds two int8 products in 16 bits and saturates; 7-bit weights leave room.
        reduce_range=_is_x86() and not torch.cpu.get_capabilities().get("avx512_vnni", False),
        # onnx cannot infer the type behind the attention node, a com.microsoft one.
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT, "MatMulConstBOnly": True},
    )


WRITERS: dict[str, Callable[[PreTrainedModel, Path, Path], None]] = {
    "torch-fp16": _write_torch_fp16,
    "onnx-fp32": _write_onnx_fp32,
    "onnx-fp16": _write_onnx_fp16,
    "onnx-int8": _write_onnx_int8,
}


def _session(folder: Path, device: Device) -> Session:
    if (folder / ONNX_WEIGHTS).is_file():
        where: Device = device if onnx_runs_on_cuda() else "cpu"
        return OnnxSession(folder / ONNX_WEIGHTS, where, format=folder.name)
    return TorchSession(load_torch(str(folder), load_config(str(folder))), device)


def _rounding_like_fp16(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy that rounds weights and each module's output to fp16: what a GPU with fp32 accumulation computes.

    Values past fp16's range become infinite, as they would there. The CPU's own fp16 is many times slower.
    """

    def rounded(_: torch.nn.Module, __: Any, output: Any) -> Any:
        return output.half().float() if isinstance(output, torch.Tensor) else output

    emulation = copy.deepcopy(model).half().float()
    for module in emulation.modules():
        if not any(module.children()):
            module.register_forward_hook(rounded)
    return emulation


def _prove(
    name: str,
    folder: Path,
    model: PreTrainedModel,
    logits: np.ndarray,
    reference: np.ndarray,
    gold_labels: np.ndarray,
    max_accuracy_drop: float,
) -> Proof:
    size = weights_bytes(folder)
    fusion = _fusion(folder / ONNX_WEIGHTS, layer_count(model.config)) if name.startswith("onnx-") else {}
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits)).any(axis=1).sum())
        reason = f"logits of {bad} of {len(logits)} texts are not finite"
        return Proof(name, False, reason, None, None, None, None, size, fusion)
    accuracy = float((logits.argmax(axis=1) == gold_labels).mean())
    drop = float((reference.argmax(axis=1) == gold_labels).mean()) - accuracy
    reason = None
    if fusion and fusion["attention"]["fused"] < fusion["attention"]["expected"]:
        reason = f"attention fused in {fusion['attention']['fused']} of {fusion['attention']['expected']} layers"
    elif drop > max_accuracy_drop + 1e-9:  # whatever the subtraction rounds to, the bound itself is allowed
        reason = f"validation accuracy falls by {drop:.4f}, more than export.max_accuracy_drop {max_accuracy_drop}"
    return Proof(
        format=name,
        passed=reason is None,
        reason=reason,
        accuracy=accuracy,
        accuracy_drop=drop,
        agreement=agreement(logits, reference),
        max_logit_diff=float(np.abs(logits - reference).max()),
        size_bytes=size,
        fusion=fusion,
    )


def _fusion(path: Path, layers: int) -> dict[str, Any]:
    """How many attention nodes the graph has against how many layers the model has."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    return {"attention": {"fused": sum(node.op_type == FUSED_ATTENTION for node in nodes), "expected": layers}}


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence exporters that report their own progress and deprecations as warnings."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
