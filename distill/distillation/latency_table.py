"""What models of several sizes cost on this machine in onnx-int8, kept in a file once it is measured."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
from huggingface_hub.constants import HF_HOME
from transformers import PreTrainedModel
from typing_extensions import TypedDict

from distill.export.latency import Cost
from distill.machine.cpu import cores, cpu_kind
from distill.models.pruning import Size
from distill.recipe.schema import Benchmark
from distill.storage.files import read_json, write_json
from distill.storage.records import checked

log = logging.getLogger("distill")

LATENCIES = Path(HF_HOME) / "distill" / "latencies"
MEASURED_ANEW: set[Path] = set()  # in this process, for the first of several budgets


class JsonSize(TypedDict):
    """A `Size` in a file."""

    heads: list[int]  # of each layer
    channels: list[int]


class Measured(TypedDict):
    """The cost of a size in a file."""

    size: JsonSize
    latency_ms: float
    size_bytes: int


class _Latencies(TypedDict):
    depends: dict[str, Any]
    measured: list[Measured]


def size_from_json(numbers: JsonSize) -> Size:
    """Return a size that was written to a file."""
    return Size(tuple(numbers["heads"]), tuple(numbers["channels"]))


def size_as_json(size: Size) -> JsonSize:
    """Return a size as it is written to a file."""
    return {"heads": list(size.heads), "channels": list(size.channels)}


class LatencyTable:
    """The costs of a model's sizes at a shape on this machine, kept in HF_HOME once they are measured."""

    def __init__(self, model: PreTrainedModel, shape: str, benchmark: Benchmark, *, fresh: bool):
        config = model.config.to_dict()
        self.depends = {
            "model": {name: config[name] for name in sorted(config) if type(config[name]) in (int, float, str)},
            "shape": shape,
            "threads": benchmark.threads or cores(),
            "rounds": benchmark.rounds,
            "cpu": cpu_kind(),
            "onnxruntime": onnxruntime.__version__,
            "figure": "median in turn with the whole model, of each layer",  # earlier versions held other figures
        }
        key = hashlib.sha256(json.dumps(self.depends).encode()).hexdigest()[:16]
        self.path = LATENCIES / f"{key}.json"
        self.costs: dict[Size, Cost] = {}
        is_stale = fresh and self.path not in MEASURED_ANEW
        if fresh:
            MEASURED_ANEW.add(self.path)
        if self.path.is_file() and not is_stale:
            found = checked(_Latencies, read_json(self.path), str(self.path))["measured"]
            self.costs = {size_from_json(one["size"]): Cost(one["latency_ms"], one["size_bytes"]) for one in found}
            log.info("student: %d latencies were measured before (%s)", len(self.costs), self.path)

    def add(self, costs: Mapping[Size, Cost]) -> None:
        """Keep the costs of sizes."""
        self.costs |= costs
        write_json(self.path, {"depends": self.depends, "measured": self.as_json()})

    def as_json(self) -> list[Measured]:
        """Return all costs as they are written to a file."""
        return [
            {"size": size_as_json(size), "latency_ms": cost.latency_ms, "size_bytes": cost.size_bytes}
            for size, cost in self.costs.items()
        ]
