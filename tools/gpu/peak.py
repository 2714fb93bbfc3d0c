"""What a GPU reaches at best: large matrix products in bf16, fp16, TF32 and fp32, and copying within its memory.

usage: python3 tools/gpu/peak.py [--device cuda] [--side 8192] [--gigabytes 4] [--rounds 20]

Products of random matrices, since zeros multiply faster; a copy counts the bytes read and the bytes written. The last
line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable

import torch

from distill.machine.timing import time_in_turn

# What is multiplied, and whether fp32 may be rounded to TF32 for it.
PRODUCTS = {
    "bf16": (torch.bfloat16, "highest"),
    "fp16": (torch.float16, "highest"),
    "tf32": (torch.float32, "high"),
    "fp32": (torch.float32, "highest"),
}


def main() -> None:
    """Time the products and the copy in turn and print their rates."""
    parser = argparse.ArgumentParser(description="Matrix-product peak and memory bandwidth.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--side", type=int, default=8_192)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    calls = {name: product(arguments, *settings) for name, settings in PRODUCTS.items()}
    source = torch.ones(int(arguments.gigabytes * 1e9), dtype=torch.uint8, device=arguments.device)
    target = torch.empty_like(source)
    calls["copy"] = lambda: target.copy_(source)
    wait = torch.cuda.synchronize if arguments.device == "cuda" else lambda: None
    raw = time_in_turn(calls, arguments.rounds, synchronize=wait)
    medians = {name: statistics.median(times) / 1e3 for name, times in raw.items()}
    found = {
        "flops_per_second": {name: 2 * arguments.side**3 / medians[name] for name in PRODUCTS},
        "bytes_per_second": 2 * source.numel() / medians["copy"],
        "raw_ms": raw,
        "arguments": vars(arguments),
    }
    for name, rate in found["flops_per_second"].items():
        print(f"{name:5} {rate / 1e12:8.1f} TFLOP/s")
    print(f"copy  {found['bytes_per_second'] / 1e9:8.1f} GB/s")
    print(json.dumps(found))


def product(arguments: argparse.Namespace, dtype: torch.dtype, precision: str) -> Callable[[], object]:
    """Return a call that multiplies two random square matrices of `dtype`, fp32 ones in `precision`."""
    a, b = (torch.randn(arguments.side, arguments.side, device=arguments.device).to(dtype) for _ in range(2))
    c = torch.empty_like(a)

    def call() -> None:
        torch.set_float32_matmul_precision(precision)
        torch.matmul(a, b, out=c)

    return call


if __name__ == "__main__":
    main()
