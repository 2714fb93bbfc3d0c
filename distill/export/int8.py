"""Quantize a graph to int8: for ONNX Runtime with dynamic activations, for OpenVINO with calibrated ones."""

from __future__ import annotations

import contextlib
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from distill.errors import DeviceError
from distill.export.int8_tables import round_tables
from distill.export.outliers import feed_forward, isolate
from distill.inference.runtimes import OPENVINO_EXTRA, import_openvino
from distill.models.weights import OPENVINO_WEIGHTS

CALIBRATION_TEXTS = 300  # NNCF's own default for a calibration set


@dataclass(frozen=True)
class Int8Settings:
    """How ONNX Runtime's weights are quantized to int8.

    Weights are `signed` or unsigned, with a scale `per_channel` or per tensor. `reduce_range` uses 7 of the 8 bits.
    `outliers` isolates wide input channels (see outliers.isolate). The matrix products in `fp32_products` stay in fp32:
    "feed_forward" (the outputs of that part) and "head" (with the pooler). So do the embeddings if `embeddings` is
    False.
    """

    signed: bool = True
    per_channel: bool = True
    reduce_range: bool = False
    outliers: bool = True
    embeddings: bool = True
    fp32_products: tuple[str, ...] = ()


# For an n-gram model. Its head is a few numbers, and its averages of short texts are far larger than of long ones,
# which one scale for a batch would round away.
TABLES_ONLY = Int8Settings(outliers=False, fp32_products=("head",))


def int8_settings() -> tuple[Int8Settings, ...]:
    """Return the settings worth trying on this CPU, smallest and fastest first.

    Without VNNI, an x86 CPU adds two int8 products in 16 bits, which may saturate. So either one bit stays free, or the
    weights are unsigned, which is slower. Most of the loss of int8 is in the feed-forward part, so its outputs are the
    first to stay in fp32. tools/benchmarks/int8_settings.py measures the effect of each setting.
    """
    capabilities = torch.cpu.get_capabilities()
    vnni = capabilities.get("avx512_vnni", False) or capabilities.get("avx_vnni", False)
    saturates = platform.machine().lower() in ("x86_64", "amd64") and not vnni
    smallest = Int8Settings(reduce_range=saturates)
    return (
        smallest,
        *((Int8Settings(signed=False),) if saturates else ()),
        replace(smallest, outliers=False),  # isolation widens some weights, which may cost more than it gains
        replace(smallest, fp32_products=("feed_forward",)),
        replace(smallest, fp32_products=("feed_forward", "head"), embeddings=False),
    )


def quantise(graph: Path, target: Path, settings: Int8Settings, largest: dict[str, np.ndarray]) -> None:
    """Write the fp32 `graph` with int8 matrix products and, if `settings` say so, int8 embedding tables.

    `largest` is what `outliers.widest` returns for the graph.
    """
    model = onnx.load(graph)
    fp32 = _products(model, settings.fp32_products)
    if settings.outliers:
        fp32 += isolate(model, largest, leave=fp32)
    if settings.embeddings:
        round_tables(model)
    large = graph.with_name(f"{graph.name}.data").is_file()
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        changed = Path(work) / graph.name
        onnx.save(model, changed, save_as_external_data=large, location=f"{graph.name}.data")
        quantize_dynamic(
            changed,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=settings.per_channel,
            weight_type=QuantType.QInt8 if settings.signed else QuantType.QUInt8,
            reduce_range=settings.reduce_range,
            nodes_to_exclude=fp32,
            use_external_data_format=large,
            # onnx cannot infer types after the attention node, which belongs to com.microsoft.
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT, "MatMulConstBOnly": True},
        )


def quantise_openvino(graph: Path, target: Path, batches: Sequence[dict[str, np.ndarray]]) -> None:
    """Write the fp32 `graph` with int8 weights and activations; `batches` of tokens give the ranges of activations.

    Raises `DeviceError` if the extra is not installed.
    """
    openvino, nncf = import_openvino(), import_nncf()
    with contextlib.redirect_stdout(sys.stderr):  # NNCF's progress bars go to stdout, which is for data
        model = nncf.quantize(
            openvino.Core().read_model(graph),
            nncf.Dataset(batches),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(batches),
        )
    openvino.save_model(model, target / OPENVINO_WEIGHTS)


def import_nncf() -> Any:
    """Return the module nncf; raise `DeviceError` if the extra is not installed."""
    import_openvino()  # it also turns off NNCF's telemetry
    try:
        import nncf
    except ImportError as error:
        raise DeviceError("NNCF, which openvino-int8 needs, is not installed", hint=OPENVINO_EXTRA) from error
    return nncf


def _products(model: onnx.ModelProto, kinds: Sequence[str]) -> list[str]:
    """Return the names of the matrix products of these kinds."""
    chosen: list[str] = []
    if "feed_forward" in kinds:
        chosen += [node.name for node, narrows in feed_forward(model) if narrows]
    if "head" in kinds:  # the head reads only the first token, so its products have two dimensions and are Gemm nodes
        heads = [node.name for node in model.graph.node if node.op_type == "Gemm"]
        chosen += [*heads, *(f"{name}_MatMul" for name in heads)]  # the quantizer splits a Gemm first
    return chosen
