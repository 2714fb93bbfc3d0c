"""Compare the latency of a model's formats, in turn in one process, and their share of the machine's peak.

usage: python3 tools/benchmarks/format_latency.py MODEL_DIR FOLDER... [--shapes 1x128 8x128 4x512] [--rounds 15]
           [--threads 2]

MODEL_DIR is the torch model. A FOLDER is an export of distill or Optimum: model.onnx or openvino_model.xml with its
config.json.

- GFLOP/s: the model's arithmetic divided by a format's median latency. Torch counts the arithmetic (matrix products and
  attention) in the model as distill runs it. If an exporter's graph does more arithmetic for the same answers, the
  surplus does not count.
- `of_peak`: that figure divided by the peak, which is the fastest runtime's at one large matrix product, in the same
  precision and with the same threads.
- `time_by_node`: for ONNX formats, the share of the time that each kind of node takes.

The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch.utils import mkldnn
from torch.utils.flop_counter import FlopCounterMode

from distill.export.fusion import executed
from distill.inference.classifier import open_session
from distill.inference.sessions import OnnxSession, Session
from distill.inference.torch_session import TorchSession, load_torch
from distill.machine.devices import describe_hardware
from distill.machine.provenance import versions
from distill.machine.timing import time_in_turn
from distill.measuring.benchmark import call_at
from distill.models.loading import load_config
from distill.models.weights import ONNX_WEIGHTS

SIDE = 2_048  # rows and columns of the matrices in the large product
PRODUCTS = {"fp32": ("MatMul", TensorProto.FLOAT, TensorProto.FLOAT),
            "int8": ("MatMulInteger", TensorProto.UINT8, TensorProto.INT8)}  # fmt: skip


def main() -> None:
    """Time the formats in turn; print each one's median, ratio to the first folder and share of the peak."""
    parser = argparse.ArgumentParser(
        description="Compare the latency of formats, and their share of the machine's peak."
    )
    parser.add_argument("model")
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--shapes", nargs="+", default=["1x128", "8x128", "4x512"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sessions: dict[str, Session] = {
        name: open_session(name, load_config(name), "cpu", threads=arguments.threads)
        for name in (*arguments.folders, arguments.model)
    }
    products = {
        f"{precision} {name}": call
        for precision in PRODUCTS
        for name, call in large_products(precision, arguments.threads).items()
    }
    vocabulary = load_config(arguments.model).vocab_size
    found: dict[str, Any] = {}
    for shape in arguments.shapes:
        calls = {name: call_at(session, shape, vocabulary=vocabulary) for name, session in sessions.items()}
        with torch.inference_mode():
            raw = time_in_turn(calls | products, arguments.rounds)  # so the machine's drift affects the peak as well
        medians = {name: statistics.median(times) for name, times in raw.items()}
        peaks = {
            precision: 2 * SIDE**3 / min(medians[name] for name in products if name.startswith(precision)) / 1e6
            for precision in PRODUCTS
        }
        arithmetic = flops(arguments.model, shape)
        found[shape] = {"gflop": arithmetic / 1e9, "peak_gflop_per_s": peaks, "formats": {}}
        print(f"{shape}: peak " + ", ".join(f"{best:.0f} GFLOP/s in {precision}" for precision, best in peaks.items()))
        for name in sessions:
            median = medians[name]
            speed = arithmetic / median / 1e6
            row = {
                "median_ms": median,
                "times_faster_than_first": medians[arguments.folders[0]] / median,
                "gflop_per_s": speed,
                "of_peak": speed / peaks["int8" if "int8" in Path(name).name else "fp32"],
                "raw_ms": [round(value, 3) for value in raw[name]],
            }
            found[shape]["formats"][name] = row
            print(
                f"{shape:>6} {median:8.2f} ms  x{row['times_faster_than_first']:<6.2f} {speed:5.0f} GFLOP/s, "
                f"{row['of_peak']:.0%} of the peak  {name}"
            )
            if isinstance(sessions[name], OnnxSession):
                row["time_by_node"] = shares = time_by_node(Path(name) / ONNX_WEIGHTS, shape, arguments.threads)
                print(f"       {name}: " + ", ".join(f"{share:.0%} {kind}" for kind, share in shares.items()))
    conditions = {"arguments": vars(arguments), "hardware": describe_hardware(), "versions": versions()}
    print(json.dumps({"shapes": found} | conditions))


def flops(model: str, shape: str) -> int:
    """Return the floating-point operations in the model's matrix products and attention, as distill runs it."""
    torch_model = load_torch(model, load_config(model))
    torch_model.set_attn_implementation("eager")  # torch counts every product in eager attention
    session = TorchSession(torch_model, "cpu")
    with FlopCounterMode(display=False) as counter:
        call_at(session, shape, vocabulary=torch_model.config.vocab_size)()
    # Eager attention is not narrowed to the first token: subtract what the last layer computes for the others.
    batch, tokens = map(int, shape.split("x"))
    return counter.get_total_flops() - 4 * batch * (tokens - 1) * tokens * torch_model.config.hidden_size


def time_by_node(path: Path, shape: str, threads: int) -> dict[str, float]:
    """Return the share of each kind of node in ONNX Runtime's time, largest first, without those up to 2 %."""
    batch, tokens = map(int, shape.split("x"))
    spent: Counter[str] = Counter()
    for node in executed(path, "cpu", np.full((batch, tokens), 5), threads=threads, runs=5):
        spent[node.kind] += node.microseconds
    return {kind: time / spent.total() for kind, time in spent.most_common() if time > 0.02 * spent.total()}


def large_products(precision: str, threads: int) -> dict[str, Callable[[], object]]:
    """Return calls that multiply two large matrices, one for each way that torch and ONNX Runtime have."""
    kind, left, right = PRODUCTS[precision]
    graph = helper.make_graph(
        [helper.make_node(kind, ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", left, [SIDE, SIDE])],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT if kind == "MatMul" else TensorProto.INT32, None)],
        # A constant, as weights are: runtimes repack constants once.
        [onnx.numpy_helper.from_array(np.ones((SIDE, SIDE), helper.tensor_dtype_to_np_dtype(right)), "b")],
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    a = np.ones((SIDE, SIDE), helper.tensor_dtype_to_np_dtype(left))
    calls: dict[str, Callable[[], object]] = {"onnxruntime": lambda: session.run(None, {"a": a})}
    if precision == "fp32":
        x, y = torch.from_numpy(a), torch.ones(SIDE, SIDE)
        linear, z = mkldnn.to_mkldnn(torch.nn.Linear(SIDE, SIDE, bias=False).eval()), x.to_mkldnn()
        calls |= {
            "torch": lambda: x @ y,
            "torch, oneDNN": lambda: linear(z),
        }
    else:
        i8 = torch.ones(SIDE, SIDE, dtype=torch.int8)
        calls["torch"] = lambda: torch.ops.aten._int_mm(i8, i8)
    return calls


if __name__ == "__main__":
    main()
