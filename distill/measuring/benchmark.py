"""Classifiers on a labelled split and at fixed shapes: one Measurement each, all timed in turn in one process."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from scipy.special import softmax

from distill.inference.classifier import Classifier, check_finite, load, weights_bytes
from distill.inference.sessions import Session
from distill.machine.devices import Device
from distill.machine.progress import progress_line
from distill.machine.timing import PAUSE_SECONDS, summarise, time_in_turn
from distill.measuring.cascade import cascade_curve
from distill.measuring.metrics import agreement, chance_p_value, confusion, figures
from distill.models.calibration import reliability
from distill.models.loading import align_labels, load_config, token_limit, vocabulary_of
from distill.storage.checksums import ANSWERING, check_whole

WARMUP_TEXTS = 16
MOST_CLASSES = 50  # of which a confusion matrix can be read; its size is their square


@dataclass(frozen=True)
class Candidate:
    """Something to measure: a folder on a device, in the dtype it was saved in or another, and its role."""

    role: str
    model: str
    folder: Path
    device: Device
    dtype: str | None = None


@dataclass(frozen=True)
class Measurement:
    """What was measured of one candidate; the fields are those of report.json.

    `classes_answered` is how many of the classes it gave as an answer: with 1, it answers the same whatever the text.
    `chance_p_value` is that of its answers having nothing to do with the labels (see metrics.chance_p_value).
    """

    role: str
    model: str
    folder: str
    format: str
    device: Device
    max_tokens: int
    accuracy: float
    accuracy_ci95: list[float]
    classes_answered: int
    chance_p_value: float
    macro_f1: float
    ece: float
    brier: float
    agreement: float | None
    size_bytes: int
    load_seconds: float
    latency_ms: dict[str, dict[str, Any]]
    texts_per_second: float
    confusion: list[list[int]] | None
    reliability: list[dict[str, float]]
    logits: np.ndarray = field(repr=False)  # float32 (texts, classes), on the texts in their order

    def as_json(self) -> dict[str, Any]:
        """Return the entry of report.json: all but the logits."""
        return {name: value for name, value in asdict(self).items() if name != "logits"}


def measure(
    candidates: Sequence[Candidate],
    label_names: Sequence[str],
    texts: Sequence[str],
    gold_labels: np.ndarray,
    shapes: Sequence[str],
    *,
    rounds: int,
    threads: int | None,
) -> list[Measurement]:
    """Return a measurement of each candidate, in order.

    `texts_per_second` is end to end on `texts`, tokenising and copies included; the same pass gives the accuracy.
    Latency is of the model alone at each of `shapes` ("8x128"), in milliseconds, candidates in turn; a shape longer
    than a model's positions is left out for it. `agreement` is with the same model's torch-fp32, None where that is not
    among the candidates. Raises `ModelError` for a model whose classes are not `label_names`.
    """
    classifiers, load_seconds, columns = {}, {}, {}
    for candidate in candidates:
        check_whole(candidate.folder, ANSWERING)  # not a part of loading, and done once
        start = time.perf_counter()
        classifiers[candidate] = load(candidate.folder, candidate.device, dtype=candidate.dtype, threads=threads)
        load_seconds[candidate] = time.perf_counter() - start
        columns[candidate] = align_labels(
            classifiers[candidate].label_names, label_names, teacher=str(candidate.folder)
        )
    logits, rates = {}, {}
    latency: dict[Candidate, dict[str, Any]] = {candidate: {} for candidate in candidates}
    with _torch_threads(threads or joblib.cpu_count()):
        for candidate, classifier in classifiers.items():
            title = f"{candidate.role} {classifier.session.format} {candidate.device}"
            with progress_line(title, len(texts), "text") as line:
                answers, rates[candidate] = timed_logits(classifier, texts, progress=line.update)
                check_finite(answers, f"{candidate.folder} ({title})")
                logits[candidate] = answers[:, columns[candidate]]
        for shape in shapes:
            tokens = int(shape.split("x")[1])
            calls = {
                candidate: call_at(classifier.session, shape, vocabulary=vocabulary_of(classifier.tokenizer))
                for candidate, classifier in classifiers.items()
                if tokens <= (token_limit(load_config(str(candidate.folder))) or tokens)
            }
            with progress_line(f"latency at {shape}", rounds * len(calls), "call") as line:
                timed = time_in_turn(calls, rounds, synchronize=_synchronize, progress=line.update)
            for candidate, latencies in timed.items():
                latency[candidate][shape] = summarise(latencies)
    references = {
        (candidate.model, candidate.device): candidate
        for candidate, classifier in classifiers.items()
        if classifier.session.format == "torch-fp32"
    }
    measurements = []
    for candidate, classifier in classifiers.items():
        found = figures(logits[candidate], gold_labels)
        reference = references.get((candidate.model, candidate.device))
        measurements.append(
            Measurement(
                role=candidate.role,
                model=candidate.model,
                folder=str(candidate.folder),
                format=classifier.session.format,
                device=candidate.device,
                max_tokens=classifier.max_tokens,
                accuracy=found["accuracy"],
                accuracy_ci95=found["accuracy_ci95"],
                classes_answered=len(np.unique(logits[candidate].argmax(axis=1))),
                chance_p_value=chance_p_value(logits[candidate].argmax(axis=1), gold_labels),
                macro_f1=found["macro_f1"],
                ece=found["ece"],
                brier=found["brier"],
                agreement=agreement(logits[candidate], logits[reference]) if reference else None,
                size_bytes=weights_bytes(candidate.folder),
                load_seconds=load_seconds[candidate],
                latency_ms=latency[candidate],
                texts_per_second=rates[candidate],
                confusion=confusion(logits[candidate], gold_labels) if len(label_names) <= MOST_CLASSES else None,
                reliability=reliability(softmax(logits[candidate], axis=1), gold_labels),
                logits=logits[candidate],
            )
        )
    return measurements


def timed_logits(
    classifier: Classifier, texts: Sequence[str], *, progress: Callable[[int], object] = lambda done: None
) -> tuple[np.ndarray, float]:
    """Return the logits of `texts`, float32 (texts, classes), and the texts per second, tokenising included.

    What a session opens or compiles at its first calls is done before the clock starts.
    """
    time.sleep(PAUSE_SECONDS)  # let the last runtime's threads come to rest
    one = np.ones((1, 1), np.int64)
    list(classifier.session.run_each([(one, one)] * (joblib.cpu_count())))  # at least one for each of its threads
    classifier.logits(texts[:WARMUP_TEXTS])
    start = time.perf_counter()
    logits = classifier.logits(texts, progress=progress)
    return logits, len(texts) / (time.perf_counter() - start)


def call_at(session: Session, shape: str, *, vocabulary: int) -> Callable[[], object]:
    """Return a call of the model alone at `shape` ("8x128"), on random ordinary tokens without padding.

    What the tokens are does not change the time.
    """
    batch, tokens = map(int, shape.split("x"))
    ids = np.random.default_rng(0).integers(5, vocabulary, (batch, tokens), dtype=np.int64)
    mask = np.ones_like(ids)
    return lambda: session.run(ids, mask)


@contextlib.contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    """Let torch use as many as the other runtimes take; whoever launched this may have told it to use fewer."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def cascade_of(measurements: Sequence[Measurement], gold_labels: np.ndarray, shape: str) -> dict[str, Any] | None:
    """The fastest student before the fastest teacher, where texts come one by one; None where either lacks."""
    able = [item for item in measurements if shape.startswith("1x") and shape in item.latency_ms]
    fastest = {
        role: min(those, key=lambda item: item.latency_ms[shape]["p50"])
        for role in ("student", "teacher")
        if (those := [item for item in able if item.role == role])
    }
    if len(fastest) < 2:
        return None
    logits = {role: item.logits for role, item in fastest.items()}
    times = {f"{role}_ms": item.latency_ms[shape]["p50"] for role, item in fastest.items()}
    curve = cascade_curve(logits["student"], logits["teacher"], gold_labels, **times)
    named = {role: f"{item.format} on {item.device}" for role, item in fastest.items()}
    return {**named, **times, "shape": shape, "curve": curve}
