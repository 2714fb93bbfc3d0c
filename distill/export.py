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
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from optimum.utils import DummyTextInputGenerator
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, PreTrainedTokenizerBase

from distill.devices import Device
from distill.metrics import agreement
from distill.models import layer_count, load_config, normalized_config
from distill.predictors import ONNX_WEIGHTS, Classifier, OnnxSession, Session, TorchSession, load_torch, weights_bytes

OPSET = 20  # the first with Gelu as one node; from 23 attention is one too, which onnxruntime's quantiser breaks
FUSED_ATTENTION = "MultiHeadAttention"
# Kept in fp32 in an fp16 graph: sums over hundreds of squares or exponentials can pass 65,504, the largest fp16.
FP32_IN_FP16 = ["LayerNormalization", "Softmax"]
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
            if name.startswith("onnx-") and not graph.is_file():
                trace(model, graph)
            made = Path(work) / name
            made.mkdir()
            with _quiet():
                WRITERS[name](model, graph, made)
            if name.startswith("onnx-"):
                model.config.save_pretrained(made)
            tokenizer.save_pretrained(made)
            proof = _prove(name, made, model, classify(_session(made, device)), reference, gold_labels, max_accuracy_drop)
            shutil.rmtree(folder / name, ignore_errors=True)
            if proof.passed:
                os.replace(made, folder / name)
            proofs.append(proof)
    return proofs


def trace(model: PreTrainedModel, path: Path) -> None:
    """Write the fp32 graph of a classifier: input_ids and attention_mask in (int64), logits out, batch and sequence free.

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
    with _quiet():
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
        program.save(path, external_data=False)


class _LogitsOnly(torch.nn.Module):
    """The classifier as a function of ids and mask; token types are constant zeros, and so folded into the graph."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


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
    # The tracer notes types and shapes inside the graph. The fp16 converter needs the types; onnxruntime's quantiser
    # trips over shapes that later rewrites made stale, and no session needs either.
    traced = onnx.load(graph)
    traced.graph.ClearField("value_info")
    onnx.save(traced, folder / ONNX_WEIGHTS)


def _write_onnx_fp16(model: PreTrainedModel, graph: Path, folder: Path) -> None:
    half = convert_float_to_float16(
        onnx.load(graph), keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *FP32_IN_FP16]
    )
    onnx.save(half, folder / ONNX_WEIGHTS)


def _write_onnx_int8(model: PreTrainedModel, graph: Path, folder: Path) -> None:
    _write_onnx_fp32(model, graph, folder)  # quantised in place
    quantize_dynamic(
        folder / ONNX_WEIGHTS,
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
        return OnnxSession(folder / ONNX_WEIGHTS, device, format=folder.name)
    model = load_torch(str(folder), load_config(str(folder)))
    if device == "cpu":
        _round_like_fp16(model)
    return TorchSession(model, device)


def _round_like_fp16(model: PreTrainedModel) -> None:
    """Make a model that computes in fp32 round each module's output to fp16: what a GPU with fp32 accumulation does.

    Values past fp16's range become infinite, as they would there. The CPU's own fp16 is tens of times slower.
    """

    def rounded(_: torch.nn.Module, __: Any, output: Any) -> Any:
        return output.half().float() if isinstance(output, torch.Tensor) else output

    for module in model.modules():
        if not any(module.children()):
            module.register_forward_hook(rounded)


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
    elif drop > max_accuracy_drop + 1e-9:  # a drop of exactly the bound is within it, whatever the subtraction rounds to
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
