"""Where the time of training a teacher goes: the share of the device's peak, and the rest by part.

usage: python3 tools/benchmarks/step_profile.py ENCODER_DIR TRAIN.parquet --work DIR [--texts 400]
           [--max-tokens 512] [--batch 8]
           [--set KEY=VALUE ...]

`distill teacher` is run twice on the same texts: as it is, for its figures, and under torch's profiler, for the shares
of its parts (a part's own time on the main thread, on which the others wait). What no operation of torch accounts for
is Python, the loader and the launching of threads. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from teacher_throughput import prepare
from torch.profiler import ProfilerActivity, profile

from distill import commands
from distill.machine.devices import describe_hardware
from distill.machine.provenance import versions
from distill.recipe.file import load_recipe
from distill.storage.files import read_json
from distill.training import run as fitting

# The first whose word stands in an operation's name has it.
PARTS = {
    "attention": ("scaled_dot_product",),
    "matrix products": ("mm", "linear", "matmul"),
    "dropout": ("dropout", "bernoulli"),
    "LayerNorm": ("layer_norm",),
    "Gelu": ("gelu",),
    "optimizer and clipping": ("adam", "_foreach", "linalg_vector_norm"),
    "embeddings": ("embedding", "index"),
    "sums and copies": ("add", "copy", "mul", "sum", "clone", "contiguous", "cat", "div", "fill", "zero", "empty"),
}


def main() -> None:
    """Train twice, print the shares."""
    parser = argparse.ArgumentParser(description="Where the time of training a teacher goes.")
    parser.add_argument("encoder")
    parser.add_argument("train")
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--labels", nargs="+", default=["negative", "positive"])
    parser.add_argument("--set", nargs="*", default=[], dest="sets")
    arguments = parser.parse_args()
    recipe = load_recipe(prepare(arguments), arguments.sets)
    folder = commands.teacher(recipe, arguments.work / "plain", overwrite=True)
    figures = read_json(folder.metrics)["training"]
    shares = profiled(recipe, arguments.work / "profiled")
    utilisation, peak = figures["model_flop_utilisation"], figures["peak_flops_per_second"]
    share = (
        "a peak that was mistimed" if utilisation is None else f"{100 * utilisation:.0f} % of {peak / 1e9:.0f} GFLOP/s"
    )
    print(f"{figures['samples_per_second']:.2f} texts/s, {share}")
    for part, share in shares.items():
        print(f"{part:24} {100 * share:5.1f} %")
    shown = {name: str(value) for name, value in vars(arguments).items()}
    conditions = {"arguments": shown, "hardware": describe_hardware(), "versions": versions()}
    print(json.dumps({"training": figures, "shares_of_time": shares} | conditions))


def profiled(recipe: Any, output: Path) -> dict[str, float]:
    """Return each part's share of the training's time."""
    train, found = fitting.train, {}

    def under_profiler(*args: Any, **kwargs: Any) -> dict[str, Any]:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            figures = train(*args, **kwargs)
        seconds = dict.fromkeys((*PARTS, "other operations"), 0.0)
        for event in profiler.key_averages():
            name = event.key.removeprefix("aten::").lower()
            part = next((part for part, words in PARTS.items() if any(word in name for word in words)), None)
            seconds[part or "other operations"] += event.self_cpu_time_total / 1e6
        seconds["outside torch"] = figures["seconds"] - sum(seconds.values())
        found.update({part: value / figures["seconds"] for part, value in seconds.items()})
        return figures

    fitting.train = under_profiler
    try:
        commands.teacher(recipe, output, overwrite=True)
    finally:
        fitting.train = train
    return found


if __name__ == "__main__":
    main()
