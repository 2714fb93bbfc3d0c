"""Count the fused nodes that ONNX Runtime runs for a graph, and compare them with the number that the model has."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import GELUActivation

from distill.export import attention
from distill.export.outliers import OWN_ACTIVATION
from distill.inference.runtimes import onnx_providers
from distill.machine.devices import Device
from distill.models.config import is_ngrams
from distill.models.loading import BERT_LIKE, layer_count

LAYER_NORM = ("LayerNormalization", "SkipLayerNormalization", "EmbedLayerNormalization")
GELU_MODULES = (nn.GELU, GELUActivation)
GELU = ("Gelu", "BiasGelu", "FastGelu", "QuickGelu")
INT8_PRODUCTS = ("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulInteger")
INT8 = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
WITHOUT_CASTS = (*BERT_LIKE, "distilbert")
FLOATS = ("float", "float16", "bfloat16")  # as ONNX Runtime's profile names them


def count_fused_nodes(path: Path, model: PreTrainedModel, device: Device) -> dict[str, Any]:
    """Return how many attentions, LayerNorms and Gelus ONNX Runtime runs as one node, and how many `model` computes.

    They are counted in ONNX Runtime's profile of a run on `device`, because the file does not say what is executed.

    - `int8_products`: matrix products on int8 weights.
    - `stray_casts`: conversions to a floating-point type.
    - `int8_tables`: lookup tables in int8, which is all that an n-gram model has to fuse.
    - `on_cpu`: nodes of a CUDA session that compute floats on the CPU (it computes shapes there on purpose).

    Isolated channels add a Gelu of their own (see outliers.isolate). An fp16 graph has intended casts around its fp32
    LayerNorms, and an architecture may have casts of its own, so neither are counted. On a CPU, which converts the
    whole fp16 graph, its nodes are counted in the file.
    """
    graph = onnx.load(path, load_external_data=False).graph
    if is_ngrams(model.config):
        tables = {weight.name: weight.data_type in INT8 for weight in graph.initializer}
        return {
            "int8_tables": sum(node.op_type == "Gather" and tables.get(node.input[0], False) for node in graph.node)
        }
    is_fp16 = any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in graph.initializer)
    ran = list(executed(path, device, np.ones((2, 8), np.int64)))
    in_file = (node.op_type for node in graph.node)
    kinds = Counter(in_file if is_fp16 and device == "cpu" else (node.kind for node in ran))
    has = _computed(model)
    isolated = sum(node.name.endswith(OWN_ACTIVATION) for node in graph.node)
    found: dict[str, Any] = {
        "attention": {"fused": kinds[attention.NODE], "expected": layer_count(model.config)},
        "layer_norm": {"fused": sum(kinds[kind] for kind in LAYER_NORM), "expected": has["layer_norm"]},
        "gelu": {"fused": sum(kinds[kind] for kind in GELU), "expected": has["gelu"] and has["gelu"] + isolated},
    }
    if not is_fp16:
        found["int8_products"] = sum(kinds[kind] for kind in INT8_PRODUCTS)
        if model.config.model_type in WITHOUT_CASTS:
            found["stray_casts"] = sum(node.kind == "Cast" and node.makes in FLOATS for node in ran)
    if device == "cuda":
        found["on_cpu"] = sum(node.provider == "CPUExecutionProvider" and node.makes in FLOATS for node in ran)
    return found


def _computed(model: PreTrainedModel) -> Counter[str]:
    """Return how many LayerNorms and exact Gelus the model computes for a text; a shared layer counts each time."""
    seen: Counter[str] = Counter()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: seen.update([name]))
        for module in model.modules()
        for name, kinds in (("layer_norm", nn.LayerNorm), ("gelu", GELU_MODULES))
        if isinstance(module, kinds) and getattr(module, "approximate", "none") == "none"
    ]
    ids = torch.ones(1, 8, dtype=torch.long, device=model.device)
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def missing_fusions(counts: Mapping[str, Any]) -> str | None:
    """Return in words which fused nodes are missing and which nodes are there in vain; None if there are none."""
    words = {"attention": "attention", "layer_norm": "LayerNorm", "gelu": "Gelu"}
    short = [
        f"{said} is one node in {counts[name]['fused']} of {counts[name]['expected']} places"
        for name, said in words.items()
        if name in counts and counts[name]["fused"] < counts[name]["expected"]
    ]
    if counts.get("stray_casts"):
        short.append(f"{counts['stray_casts']} stray casts")
    if counts.get("on_cpu"):
        short.append(f"{counts['on_cpu']} of the CUDA session's nodes run on the CPU")
    return "; ".join(short) or None


class Executed(NamedTuple):
    """A node that ONNX Runtime ran: its kind, its provider, the type of its first output, and how long it took."""

    kind: str
    provider: str
    makes: str
    microseconds: int


def executed(path: Path, device: Device, ids: np.ndarray, *, threads: int = 0, runs: int = 1) -> Iterator[Executed]:
    """Run a graph `runs` times on `ids`, int64 (batch, tokens), and yield the nodes of the last run.

    The earlier runs are warm-up. `threads` is the number of threads, or 0 for all.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_profiling = True
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=onnx_providers(device))
        feed = {item.name: np.zeros_like(ids) for item in session.get_inputs()}  # some graphs take token types
        feed |= {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        for _ in range(runs):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    started = [event["ts"] for event in events if event["name"] == "model_run"][-1]
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= started:
            made = event["args"]["output_type_shape"]
            makes = next(iter(made[0]), "") if made else ""
            yield Executed(event["args"]["op_name"], event["args"]["provider"], makes, event["dur"])
