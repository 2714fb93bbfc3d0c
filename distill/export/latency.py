"""What a classifier costs once it is exported to onnx-int8: its latency on this machine, and its size."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Hashable, Iterable, Mapping
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
    have one vocabulary and are taken one by one, each under a key of its own; nothing is kept. `progress` is called
    with 1 after each export.
    """
    sessions: dict[Key, Session] = {}
    sizes: dict[Key, int] = {}
    vocabulary = 0
    with tempfile.TemporaryDirectory() as work:
        for number, (key, model) in enumerate(models):
            folder = Path(work) / str(number)
            sessions[key] = first_int8(model, folder, threads=threads)
            sizes[key] = sum(path.stat().st_size for path in folder.iterdir())
            vocabulary = model.config.vocab_size
            progress(1)
        latencies = latencies_in_turn(sessions, shape, rounds=rounds, vocabulary=vocabulary)
    return {key: Cost(median(latencies[key]), size) for key, size in sizes.items()}


def first_int8(model: PreTrainedModel, folder: Path, *, threads: int | None) -> Session:
    """Export an fp32 model to onnx-int8 into a new folder, as is tried first, and return a session of it."""
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (1, SOME_TOKENS))
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), TOKEN_TYPES: np.zeros_like(ids)}
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as work, quiet():
        graph = Path(work) / ONNX_WEIGHTS
        trace(model, graph)
        largest = widest(graph, [{name: given[name] for name in graph_inputs(model.config)}])
        quantise(graph, folder / ONNX_WEIGHTS, int8_settings()[0], largest)
    return OnnxSession(folder / ONNX_WEIGHTS, "cpu", threads)


def latencies_in_turn(
    sessions: Mapping[Key, Session], shape: str, *, rounds: int, vocabulary: int
) -> dict[Key, list[float]]:
    """Return at least `rounds` latencies of each session at `shape` ("8x128") on random tokens, in milliseconds."""
    return time_in_turn({key: call_at(one, shape, vocabulary=vocabulary) for key, one in sessions.items()}, rounds)
