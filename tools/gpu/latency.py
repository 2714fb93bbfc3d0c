"""Latency of a classifier's formats on a GPU at one shape: torch eager, compiled and as a CUDA graph, ONNX Runtime.

usage: python3 tools/gpu/latency.py MODEL_DIR EXPORTS [--shape 8x128] [--device cuda] [--rounds 100] [--formats ...]

EXPORTS/onnx-fp32 and onnx-fp16 are made of MODEL_DIR (torch, fp32) where they lack. Without --shape that is all,
with the counts of what ONNX Runtime runs as one node and what on the CPU. With --shape every format is timed in turn,
each call to its end. The shape 8x128 is eight texts of 128 tokens, 8x32-128 is eight texts of 128 down to 32 tokens,
padded to 128. Input and output stay on the GPU, except in the formats called `distill ...`, which are distill's own
sessions: numpy in, numpy out. A format that fails is named with its error. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from transformers import PreTrainedModel
from unpadded import UnpaddedSession

from distill.data.encoding import Truncation
from distill.errors import one_line
from distill.export import attention
from distill.export.formats import WRITERS, Source
from distill.export.fusion import count_fused_nodes, missing_fusions
from distill.export.onnx_graph import quiet
from distill.inference.runtimes import onnx_providers
from distill.inference.sessions import OnnxSession
from distill.inference.torch_session import TorchSession, load_torch
from distill.machine.timing import summarise, time_in_turn
from distill.measuring.metrics import agreement
from distill.models.first_token import first_token_only, last_layer
from distill.models.loading import load_config, load_tokenizer
from distill.models.weights import ONNX_WEIGHTS
from distill.storage.files import atomic_path

WARMUP_CALLS = 5  # the first captures or compiles; ONNX Runtime captures at its second
NO_MASK = "no mask"
# What `with_mask` puts before a graph: operator, inputs, output, attributes. ONNX Runtime drops what nothing reads.
INT32 = {"to": onnx.TensorProto.INT32}
MASK_NODES: list[tuple[str, list[str], str, dict[str, Any]]] = [
    ("Cast", ["attention_mask"], "mask_as_int32", INT32),
    ("ReduceSum", ["mask_as_int32", "axis_1"], "lengths", {"keepdims": 0}),
    ("Shape", ["attention_mask"], "mask_shape", {}),
    ("Gather", ["mask_shape", "zero"], "batch_size", {}),
    ("Gather", ["mask_shape", "one"], "padded_length", {}),
    ("Mul", ["batch_size", "padded_length"], "positions", {}),
    ("Add", ["positions", "padded_length"], "after_the_last", {}),
    ("Range", ["zero", "after_the_last", "padded_length"], "begins", {}),
    ("Cast", ["begins"], "begins_as_int32", INT32),
    ("Concat", ["lengths", "begins_as_int32", "begins_as_int32"], "starts", {"axis": 0}),
]


class NotHere(Exception):
    """A format that this machine or this model does not have, with the reason."""


@dataclass(frozen=True)
class Made:
    """A format ready to run: `call` runs it, `read` gives the logits of the last call, float32 (batch, classes)."""

    call: Callable[[], object]
    read: Callable[[], np.ndarray]


class Bench:
    """The model, its exports and the inputs of one shape, and how each format is made of them."""

    def __init__(self, model: PreTrainedModel, exports: Path, device: str, shape: str):
        self.model, self.exports, self.device = model, exports, device
        batch, lengths = shape.split("x")
        least, _, most = lengths.rpartition("-")
        self.batch, self.tokens = int(batch), int(most)
        vocabulary = model.config.vocab_size
        self.ids = np.random.default_rng(0).integers(5, vocabulary, (self.batch, self.tokens), dtype=np.int64)
        ends = np.linspace(self.tokens, int(least or most), self.batch).round()
        self.mask = (np.arange(self.tokens) < ends[:, None]).astype(np.int64)
        self.kept = contextlib.ExitStack()  # what changes a model for as long as this process lives

    def formats(self) -> dict[str, Callable[[], Made]]:
        """Return how each format that is right at this shape is made, what may harm the process last."""
        half = torch.float16
        made = {
            "torch-fp32": lambda: self.eager(torch.float32),
            "torch-fp16": lambda: self.eager(half),
            "torch-bf16": lambda: self.eager(torch.bfloat16),
            "torch-fp16 unpadded": lambda: self.unpadded(half),
            "torch-bf16 unpadded": lambda: self.unpadded(torch.bfloat16),
            "distill torch-fp16": lambda: self.session(TorchSession(copy.deepcopy(self.model).to(half), self.device)),
            "onnx-fp32": lambda: self.bound("onnx-fp32"),
            "onnx-fp16": lambda: self.bound("onnx-fp16"),
            "distill onnx-fp16": lambda: self.session(OnnxSession(self.graph("onnx-fp16"), self.device)),
            "onnx-fp32 fixed": lambda: self.bound("onnx-fp32", fixed=True),
            "onnx-fp16 fixed": lambda: self.bound("onnx-fp16", fixed=True),
            # With a mask of 0 and 1, ONNX Runtime's CUDA attention is several kernels. If it is told the lengths of the
            # texts, or also where each begins, it may be one of two fused ones, and without a mask Flash Attention.
            # torch's runs another kernel without one, too.
            "onnx-fp16 fixed, lengths": lambda: self.bound("onnx-fp16", fixed=True, mask="lengths"),
            "onnx-fp16 fixed, starts": lambda: self.bound("onnx-fp16", fixed=True, mask="starts"),
            f"onnx-fp16 fixed, {NO_MASK}": lambda: self.bound("onnx-fp16", fixed=True, mask=NO_MASK),
            f"torch-fp16 graph, {NO_MASK}": lambda: self.torch_graph(half, masked=False),
            "torch-fp16 graph": lambda: self.torch_graph(half),
            "torch-bf16 graph": lambda: self.torch_graph(torch.bfloat16),
            "torch-fp16 compiled": lambda: self.compiled(half),
            "onnx-fp32 graph": lambda: self.bound("onnx-fp32", fixed=True, captured=True),
            "onnx-fp16 graph": lambda: self.bound("onnx-fp16", fixed=True, captured=True),
            "onnx-fp16 graph, lengths": lambda: self.bound("onnx-fp16", fixed=True, captured=True, mask="lengths"),
            "onnx-fp16 graph, starts": lambda: self.bound("onnx-fp16", fixed=True, captured=True, mask="starts"),
            f"onnx-fp16 graph, {NO_MASK}": lambda: self.bound("onnx-fp16", fixed=True, captured=True, mask=NO_MASK),
        }
        return {name: make for name, make in made.items() if self.mask.all() or NO_MASK not in name}

    def eager(self, dtype: torch.dtype) -> Made:
        """transformers' model as it is, attention by torch's scaled_dot_product_attention."""
        return self.kept_output(self.forward(copy.deepcopy(self.model).to(dtype)))

    def compiled(self, dtype: torch.dtype) -> Made:
        """The model by torch.compile, on CUDA with its own graphs, the last layer on the first token alone."""
        # On a CPU, where this is a rehearsal, it is traced all the same and not compiled: that takes minutes.
        how = {"mode": "reduce-overhead"} if self.device == "cuda" else {"backend": "aot_eager"}
        return self.kept_output(self.forward(torch.compile(self.narrowed(dtype), dynamic=False, **how)))

    def torch_graph(self, dtype: torch.dtype, *, masked: bool = True) -> Made:
        """The eager model captured once as a CUDA graph, the last layer on the first token alone."""
        if self.device != "cuda":
            raise NotHere("needs CUDA graphs")
        forward = self.forward(self.narrowed(dtype), masked=masked)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                forward()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = forward()
        # A replay reads the weights and inputs where they lay, so they must live as long as the graph.
        self.kept.callback(lambda held: None, forward)
        return Made(graph.replay, lambda: output.float().cpu().numpy())

    def unpadded(self, dtype: torch.dtype) -> Made:
        """The model on all texts in one row without padding (see unpadded), ids and lengths on the device."""
        session = UnpaddedSession(copy.deepcopy(self.model).to(dtype), self.device)
        packed = session.packed(self.ids, self.mask)
        return self.kept_output(lambda: session.forward(packed))

    def bound(self, name: str, *, fixed: bool = False, captured: bool = False, mask: str | None = None) -> Made:
        """ONNX Runtime with input and output bound to the device, the shape told to it (`fixed`), as a CUDA graph.

        `mask` is how its attention learns of padding (see with_mask); None is the graph as it is.
        """
        if captured and self.device != "cuda":
            raise NotHere("needs CUDA graphs")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if fixed:  # folds what computes shapes, which runs on the CPU and has no place in a CUDA graph
            options.add_free_dimension_override_by_name("batch", self.batch)
            options.add_free_dimension_override_by_name("sequence", self.tokens)
        wanted, *others = onnx_providers(self.device)
        providers = [(wanted, {"enable_cuda_graph": "1"}) if captured else wanted, *others]
        graph = str(self.graph(name)) if mask is None else with_mask(self.graph(name), mask)
        session = onnxruntime.InferenceSession(graph, options, providers=providers)
        if session.get_providers()[0] != wanted:
            raise RuntimeError(f"ONNX Runtime could not start {wanted}")
        classes = self.model.config.num_labels
        made = onnxruntime.OrtValue.ortvalue_from_shape_and_type((self.batch, classes), np.float32, self.device, 0)
        binding = session.io_binding()
        for item, values in (("input_ids", self.ids), ("attention_mask", self.mask)):
            binding.bind_ortvalue_input(item, onnxruntime.OrtValue.ortvalue_from_numpy(values, self.device, 0))
        binding.bind_ortvalue_output("logits", made)
        return Made(lambda: session.run_with_iobinding(binding), lambda: made.numpy().astype(np.float32))

    def session(self, session: TorchSession | OnnxSession) -> Made:
        """distill's own session, from numpy to numpy."""
        last: list[np.ndarray] = []

        def call() -> None:
            last[:] = [session.run(self.ids, self.mask)]

        return Made(call, lambda: last[0])

    def graph(self, name: str) -> Path:
        return self.exports / name / ONNX_WEIGHTS

    def narrowed(self, dtype: torch.dtype) -> PreTrainedModel:
        model = copy.deepcopy(self.model).to(dtype).to(self.device).eval()
        self.kept.enter_context(first_token_only(last_layer(model)))
        return model

    def forward(self, model: Any, *, masked: bool = True) -> Callable[[], torch.Tensor]:
        model = model.to(self.device).eval()
        inputs = {"input_ids": self.ids} | ({"attention_mask": self.mask} if masked else {})
        inputs = {name: torch.from_numpy(values).to(self.device) for name, values in inputs.items()}

        @torch.no_grad()
        def forward() -> torch.Tensor:
            return model(**inputs).logits

        return forward

    def kept_output(self, forward: Callable[[], torch.Tensor]) -> Made:
        last: list[torch.Tensor] = []

        def call() -> None:
            last[:] = [forward()]

        return Made(call, lambda: last[0].float().cpu().numpy())


def main() -> None:
    """Make the exports, time the formats at the shape, print a line for each."""
    parser = argparse.ArgumentParser(description="Latency of a classifier's formats on a GPU.")
    parser.add_argument("model")
    parser.add_argument("exports", type=Path)
    parser.add_argument("--shape")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--formats", nargs="+", help="only these")
    arguments = parser.parse_args()
    model = load_torch(arguments.model, load_config(arguments.model), "float32").eval()
    fusions = export(model, arguments)
    found: dict[str, Any] = {"exports": fusions}
    if arguments.shape:
        bench = Bench(model, arguments.exports, arguments.device, arguments.shape)
        with bench.kept:
            found = {"formats": measure(bench, arguments.formats, arguments.rounds)}
    print(json.dumps(found | {"arguments": {name: str(value) for name, value in vars(arguments).items()}}))


def export(model: PreTrainedModel, arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the graphs that lack, by distill's own writers; return what ONNX Runtime makes of each, without a shape."""
    found = {}
    for name in ("onnx-fp32", "onnx-fp16"):
        folder = arguments.exports / name
        if not folder.is_dir():
            with atomic_path(folder) as partial, quiet():
                partial.mkdir()
                source = Source(model, load_tokenizer(arguments.model), [], Truncation(512), partial.parent)
                WRITERS[name](source, partial, None)
        if not arguments.shape:
            found[name] = count_fused_nodes(folder / ONNX_WEIGHTS, model, arguments.device)
            found[name] |= {"shortfall": missing_fusions(found[name])}
            print(f"{name}: {found[name]}")
    return found


def measure(bench: Bench, only: list[str] | None, rounds: int) -> dict[str, Any]:
    """Return per format its latencies in milliseconds, sequences per second, memory and distance from torch's fp32."""
    wait = torch.cuda.synchronize if bench.device == "cuda" else lambda: None
    ready: dict[str, Made] = {}
    found: dict[str, Any] = {}
    reference: np.ndarray | None = None
    formats = bench.formats()
    if unknown := {name for name in only or () if name not in formats and NO_MASK not in name}:
        raise SystemExit(f"--formats: {', '.join(sorted(unknown))}: no such format; there are {', '.join(formats)}")
    for name, make in formats.items():
        if only and name not in only:
            continue
        free = free_memory(bench.device)
        try:
            made = make()
            for _ in range(WARMUP_CALLS):
                made.call()
            wait()
            logits = made.read().copy()
        except NotHere as skipped:
            found[name] = {"skipped": str(skipped)}
            continue
        except Exception as error:  # noqa: BLE001 - what fails is a result too, and the others are still to be measured
            found[name] = {"error": f"{type(error).__name__}: {one_line(error)[:500]}"}
            print(f"{bench.batch}x{bench.tokens} {name}: {found[name]['error']}")
            continue
        reference = logits if reference is None else reference  # torch-fp32 comes first
        ready[name] = made
        found[name] = {
            "max_logit_diff": float(np.abs(logits - reference).max()),
            "agreement": agreement(logits, reference),
            "is_finite": bool(np.isfinite(logits).all()),
        }
        if free is not None:
            found[name]["gpu_bytes"] = free - (free_memory(bench.device) or 0)
    # Threads of the CPU's runtimes spin for a while after a call; a GPU has nothing to come to rest from.
    pause = {"pause_seconds": 0.0} if bench.device == "cuda" else {}
    timed = time_in_turn({name: made.call for name, made in ready.items()}, rounds, synchronize=wait, **pause)
    for name, latencies in timed.items():
        found[name]["latency_ms"] = figures = summarise(latencies)
        found[name]["sequences_per_second"] = bench.batch / figures["p50"] * 1e3  # pyright: ignore[reportOperatorIssue]
        print(
            f"{bench.batch}x{bench.tokens} {name:26} {figures['p50']:9.3f} ms "
            f"{found[name]['sequences_per_second']:10.0f}/s  largest difference {found[name]['max_logit_diff']:.4f}"
        )
    return found


def with_mask(path: Path, kind: str) -> bytes:
    """Return the graph, its attention told of padding in another way; its inputs stay, and texts begin at the left.

    `kind` is "lengths" of the texts, int32 (batch,); "starts", the lengths, then where each text begins and the last
    ends in queries and keys, int32 (3 batch + 2,); or `NO_MASK`, which is right only if nothing is padded. They are the
    forms that ONNX Runtime's operator MultiHeadAttention takes for `key_padding_mask`.
    """
    model = onnx.load(path)
    nodes = [node for node in model.graph.node if node.op_type == attention.NODE]
    if any(len(node.input) < 5 or not node.input[4] for node in nodes):
        raise NotHere("its attention takes padding and windows as a bias")
    for node in nodes:
        node.input[4] = "" if kind == NO_MASK else kind
    if kind != NO_MASK:
        constants = {"axis_1": [1], "zero": 0, "one": 1}
        for name, value in constants.items():
            model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
        for index, (operator, inputs, output, attributes) in enumerate(MASK_NODES):
            model.graph.node.insert(index, helper.make_node(operator, inputs, [output], **attributes))
    return model.SerializeToString()


def free_memory(device: str) -> int | None:
    """Return the bytes free on the GPU, by the driver's count: runtimes allocate apart from each other."""
    if device != "cuda":
        return None
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


if __name__ == "__main__":
    main()
