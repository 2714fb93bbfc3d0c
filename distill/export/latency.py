"""What a classifier costs once it is exported to onnx-int8: its latency on this machine, and its size."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypeVar

import numpy as np
from transformers import PreTrainedModel

from distill.export.int8 import int8_settings, quantise
from distill.export.onnx_graph import graph_inputs, quiet, trace
from distill.export.outliers import widest
from distill.inference.sessions import OnnxSession, Session
from distill.machine.timing import time_in_turn
from distill.measuring.benchmark import call_at
from distill.models.config import TOKEN_TYPES
from distill.models.weights import ONNX_WEIGHTS

Key = TypeVar("Key", bound=Hashable)

SOME_TOKENS = 16  # enough to find wide channels, which change the graph but not its latency


class Cost(NamedTuple):
    """The median latency of a call, and the size of the file."""

    latency_ms: float
    size_bytes: int


def int8_costs(
    models: Iterable[tuple[Key, PreTrainedModel]],
    shape: str,
    *,
    rounds: int,
    threads: int | None,
    progress: Callable[[int], None] = lambda exported: None,
) -> dict[Key, Cost]:
    """Export fp32 models as onnx-int8 is first tried, time them in turn, and return each one's cost.

    The latency is that of the model alone at `shape` ("8x128") on the CPU, on random tokens, as in a report. `models`
    are taken one by one, each under a key of its own; nothing is kept. `progress` is called with 1 after each export.
    """
    calls: dict[Key, Callable[[], object]] = {}
    sizes: dict[Key, int] = {}
    with tempfile.TemporaryDirectory() as work, quiet():
        for number, (key, model) in enumerate(models):
            graph, target = Path(work) / "fp32" / ONNX_WEIGHTS, Path(work) / f"int8-{number}" / ONNX_WEIGHTS
            graph.parent.mkdir()
            target.parent.mkdir()
            trace(model, graph)
            ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (1, SOME_TOKENS))
            given = {"input_ids": ids, "attention_mask": np.ones_like(ids), TOKEN_TYPES: np.zeros_like(ids)}
            largest = widest(graph, [{name: given[name] for name in graph_inputs(model.config)}])
            quantise(graph, target, int8_settings()[0], largest)
            shutil.rmtree(graph.parent)
            session = OnnxSession(target, "cpu", threads)
            calls[key] = call_at(session, shape, vocabulary=model.config.vocab_size)
            sizes[key] = sum(path.stat().st_size for path in target.parent.iterdir())
            progress(1)
        latencies = time_in_turn(calls, rounds)
    return {key: Cost(median(latencies[key]), size) for key, size in sizes.items()}


def latencies_of(session: Session, shape: str, *, rounds: int, vocabulary: int) -> list[float]:
    """Return at least `rounds` latencies of a session at `shape` ("8x128"), in milliseconds."""
    return time_in_turn({shape: call_at(session, shape, vocabulary=vocabulary)}, rounds)[shape]
