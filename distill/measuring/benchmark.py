"""Measure classifiers on a labeled split and at fixed shapes; all are timed in turn in one process."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from distill.data.encoding import Cut, Kept, vocabulary_of
from distill.data.pairs import Text
from distill.decisions import answers_of, as_two_classes
from distill.inference.classifier import Classifier, load, weights_bytes
from distill.inference.linear import LinearClassifier
from distill.inference.sessions import Session
from distill.inference.text_classifier import TextClassifier, check_finite
from distill.machine.cpu import cores
from distill.machine.devices import Device
from distill.machine.progress import progress_line
from distill.machine.timing import PAUSE_SECONDS, summarise, time_in_turn
from distill.measuring.alignment import align
from distill.measuring.escalation import cascade_curve
from distill.measuring.metrics import agreement, by_class, chance_p_value, confusion, figures
from distill.models.calibration import reliability
from distill.models.config import token_limit
from distill.models.loading import load_config
from distill.recipe.labels import SAME_NAMES
from distill.storage.checksums import ANSWERING, check_whole

WARMUP_TEXTS = 16
MOST_CLASSES = 50  # in a confusion matrix: a larger one is hard to read, and its size grows with the square


@dataclass(frozen=True)
class Candidate:
    """A folder to measure on a device, with its role; `dtype` is None for the dtype it was saved in."""

    role: str
    model: str
    folder: Path
    device: Device
    dtype: str | None = None


@dataclass(frozen=True)
class Measurement:
    """The figures of one candidate; the fields are those of report.json.

    `max_tokens` and `truncation` say what it reads of a text, and are None if it reads all of it. `texts_cut` is the
    share of the test texts that are longer, and `tokens_cut` the share of all tokens that are cut off.
    `classes_answered` is the number of classes that it gave as an answer, or of sets of labels: if it is 1, every text
    got the same answer. If a text may have several labels, `accuracy` is the share of texts with exactly the right
    ones; if not, `f1_per_text`, `micro_f1`, `mean_average_precision` and `thresholds` are None. `confusion` is None for
    several labels, and for many classes. `chance_p_value` is the p-value for answers that are independent of the labels
    (see metrics.chance_p_value).
    """

    role: str
    model: str
    folder: str
    format: str
    device: Device
    max_tokens: int | None
    truncation: Kept | None
    texts_cut: float
    tokens_cut: float
    accuracy: float
    accuracy_ci95: list[float]
    classes_answered: int
    chance_p_value: float
    f1_per_text: float | None
    micro_f1: float | None
    macro_f1: float
    mean_average_precision: float | None
    roc_auc: float | None
    ece: float
    brier: float
    agreement: float | None
    size_bytes: int
    load_seconds: float
    latency_ms: dict[str, dict[str, Any]]
    texts_per_second: float
    thresholds: list[float] | None
    classes: list[dict[str, Any]]
    confusion: list[list[int]] | None
    reliability: list[dict[str, float]]
    logits: np.ndarray = field(repr=False)  # float32 (texts, classes), on the texts in their order

    def as_json(self) -> dict[str, Any]:
        """Return the entry of report.json: all fields but the logits."""
        return {name: value for name, value in asdict(self).items() if name != "logits"}


def measure(
    candidates: Sequence[Candidate],
    label_names: Sequence[str],
    texts: Sequence[Text],
    gold_labels: np.ndarray,
    shapes: Sequence[str],
    *,
    rounds: int,
    threads: int | None,
    label_map: Mapping[str, str] = SAME_NAMES,
) -> list[Measurement]:
    """Return a measurement of each candidate, in order.

    `texts_per_second` is end to end on `texts`, including tokenization and copies; the same pass gives the accuracy.
    Latency is that of the model alone at each of `shapes` ("8x128"), in milliseconds, with the candidates in turn. A
    shape longer than a model's positions is left out for that model. `agreement` is with the same model's torch-fp32 on
    the same device, None if that is not among the candidates. Raises `ModelError` for a model whose classes are not
    `label_names`, apart from `label_map`, or that is for another task than the gold labels.
    """
    task = "single_label" if gold_labels.ndim == 1 else "multi_label"
    classifiers, load_seconds, columns, thresholds = {}, {}, {}, {}
    for candidate in candidates:
        check_whole(candidate.folder, ANSWERING)  # hashes the files once in a process, so not while loading is timed
        start = time.perf_counter()
        classifier = load(candidate.folder, candidate.device, dtype=candidate.dtype, threads=threads)
        load_seconds[candidate] = time.perf_counter() - start
        classifiers[candidate] = classifier
        columns[candidate], thresholds[candidate] = align(
            classifier, label_names, label_map, task=task, name=str(candidate.folder)
        )
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    logits, rates = {}, {}
    latency: dict[Candidate, dict[str, Any]] = {candidate: {} for candidate in candidates}
    with torch_threads(threads or cores()):
        for candidate, classifier in classifiers.items():
            title = f"{candidate.role} {classifier.format} {candidate.device}"
            with progress_line(title, len(texts), "text") as line:
                given, rates[candidate] = timed_logits(classifier, texts, progress=line.update)
                check_finite(given, f"{candidate.folder} ({title})")
                logits[candidate] = given[:, columns[candidate]]
        for shape in shapes:
            calls = {
                candidate: call
                for candidate, classifier in classifiers.items()
                if (call := _call_of(classifier, candidate.folder, shape))
            }
            with progress_line(f"latency at {shape}", rounds * len(calls), "call") as line:
                timed = time_in_turn(calls, rounds, synchronize=synchronize, progress=line.update)
            for candidate, latencies in timed.items():
                latency[candidate][shape] = summarise(latencies)
    # A model and its exports read the same part of a text.
    models = {candidate.model: classifier for candidate, classifier in classifiers.items()}
    cuts = {name: one.cut_of(texts) if isinstance(one, Classifier) else Cut(0, 0) for name, one in models.items()}
    references = {
        (candidate.model, candidate.device): logits[candidate]
        for candidate, classifier in classifiers.items()
        if classifier.format == "torch-fp32"
    }
    measurements = []
    for candidate, classifier in classifiers.items():
        own, its = logits[candidate], thresholds[candidate]
        found, answers = figures(own, gold_labels, its), answers_of(own, its)
        two_logits, two_classes = as_two_classes(own, gold_labels)
        reference = references.get((candidate.model, candidate.device))
        measurements.append(
            Measurement(
                role=candidate.role,
                model=candidate.model,
                folder=str(candidate.folder),
                format=classifier.format,
                device=candidate.device,
                max_tokens=classifier.max_tokens,
                truncation=classifier.truncation.kept if isinstance(classifier, Classifier) else None,
                texts_cut=cuts[candidate.model].texts,
                tokens_cut=cuts[candidate.model].tokens,
                **{name: found[name] for name in ("accuracy", "accuracy_ci95", "macro_f1", "roc_auc", "ece", "brier")},
                f1_per_text=found.get("f1_per_text"),
                micro_f1=found.get("micro_f1"),
                mean_average_precision=found.get("mean_average_precision"),
                thresholds=None if its is None else list(its),
                classes_answered=len(np.unique(answers, axis=0)),
                chance_p_value=chance_p_value(answers, gold_labels),
                agreement=None if reference is None else agreement(own, reference, its),
                size_bytes=weights_bytes(candidate.folder),
                load_seconds=load_seconds[candidate],
                latency_ms=latency[candidate],
                texts_per_second=rates[candidate],
                classes=by_class(own, gold_labels, label_names, its),
                confusion=confusion(own, gold_labels) if its is None and len(label_names) <= MOST_CLASSES else None,
                reliability=reliability(softmax(two_logits, axis=1), two_classes),
                logits=own,
            )
        )
    return measurements


def timed_logits(
    classifier: TextClassifier, texts: Sequence[Text], *, progress: Callable[[int], object] = lambda done: None
) -> tuple[np.ndarray, float]:
    """Return the logits of `texts`, float32 (texts, classes), and the texts per second, including tokenization.

    A session opens and compiles things at its first calls; these are made before the clock starts.
    """
    time.sleep(PAUSE_SECONDS)  # until the last runtime's threads stop spinning
    classifier.warm_up()
    classifier.logits(texts[:WARMUP_TEXTS])
    start = time.perf_counter()
    logits = classifier.logits(texts, progress=progress)
    return logits, len(texts) / (time.perf_counter() - start)


def _call_of(classifier: TextClassifier, folder: Path, shape: str) -> Callable[[], object] | None:
    """A call at `shape`; None if the model takes fewer tokens."""
    batch, tokens = map(int, shape.split("x"))
    if isinstance(classifier, LinearClassifier):  # it reads words, and that is nearly all its time
        words = np.random.default_rng(0).integers(10_000, 99_999, (batch, tokens))
        texts: list[Text] = [" ".join(map(str, row)) for row in words]
        if classifier.reads == "pairs":
            halves = ([" ".join(map(str, half)) for half in np.array_split(row, 2)] for row in words)
            texts = [(first, second) for first, second in halves]
        return lambda: classifier.logits(texts)
    assert isinstance(classifier, Classifier)
    if tokens > (token_limit(load_config(str(folder))) or tokens):
        return None
    return call_at(classifier.session, shape, vocabulary=vocabulary_of(classifier.tokenizer, added=False))


def call_at(session: Session, shape: str, *, vocabulary: int) -> Callable[[], object]:
    """Return a call of the model alone at `shape` ("8x128"), on random ordinary tokens without padding.

    The time does not depend on which tokens these are.
    """
    batch, tokens = map(int, shape.split("x"))
    ids = np.random.default_rng(0).integers(5, vocabulary, (batch, tokens), dtype=np.int64)
    mask = np.ones_like(ids)
    return lambda: session.run(ids, mask)


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let torch use `threads`, as the other runtimes do, even if a launcher gave it fewer (OMP_NUM_THREADS)."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cascade_of(measurements: Sequence[Measurement], gold_labels: np.ndarray, shape: str) -> dict[str, Any] | None:
    """Return the cascade of the fastest student and the fastest teacher, for texts that come one by one.

    None if `shape` has another batch size than 1, if student or teacher is missing, or if a text may have several
    labels: no single probability says how sure a student is of them.
    """
    if gold_labels.ndim == 2:
        return None
    able = [item for item in measurements if shape.startswith("1x") and shape in item.latency_ms]
    fastest = {
        role: min(those, key=lambda item: item.latency_ms[shape]["p50"])
        for role in ("student", "teacher")
        if (those := [item for item in able if item.role == role])
    }
    if len(fastest) < 2:
        return None
    times = {f"{role}_ms": item.latency_ms[shape]["p50"] for role, item in fastest.items()}
    curve = cascade_curve(fastest["student"].logits, fastest["teacher"].logits, gold_labels, **times)
    named = {role: f"{item.format} on {item.device}" for role, item in fastest.items()}
    return {**named, **times, "shape": shape, "curve": curve}
