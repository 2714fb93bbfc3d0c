"""Classify texts: tokenize them, pack them by length, run them in a session and restore their order."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.data.encoding import Cut, Encoded, Truncation, cut_of, encode, vocabulary_of
from distill.data.pairs import Text
from distill.decisions import Thresholds
from distill.errors import DeviceError, ModelError, needing_training
from distill.inference.cascade import Cascade
from distill.inference.exported import is_export, read_config, read_tokenizer
from distill.inference.runtimes import FOR_CPUS, can_run, gpu_of, onnx_runs_on_cuda
from distill.inference.sessions import NGRAM_BATCH_TOKENS, OnnxSession, OpenVinoSession, Session
from distill.inference.text_classifier import TextClassifier, plain
from distill.inference.verification_sets import check_new_cpu
from distill.models.config import (
    check_fit,
    check_outputs,
    class_names,
    embeddings_of,
    is_classifier,
    is_ngrams,
    share_padding,
    task_of,
    token_limit,
)
from distill.models.names import is_baseline
from distill.models.thresholds import thresholds_of
from distill.models.truncation import Reads, kept_part, reads_of
from distill.models.weights import ONNX_WEIGHTS, OPENVINO_WEIGHTS, weight_files
from distill.storage.cascades import is_cascade, read_cascade
from distill.storage.checksums import ANSWERING, check_whole
from distill.storage.exports import EXPORT_PROOFS, read_proofs

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from distill.inference.exported import ExportedConfig, ExportedTokenizer
    from distill.machine.devices import Device

TOKENISED_AT_ONCE = 4_096  # texts: lists of ids take several times the memory of the arrays that are kept


class Classifier(TextClassifier):
    """A tokenizer, a session and class names: `classifier(texts)` gives labels, in the texts' order.

    Several threads may share a classifier. A forked process may not, because it lacks the runtime's threads.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: PreTrainedTokenizerBase | ExportedTokenizer,
        label_names: Sequence[str],
        truncation: Truncation,
        *,
        embeddings: float = math.inf,
        reads: Reads | None = None,
        thresholds: Thresholds = None,
    ):
        """`embeddings` is the number of tokens that the model embeds; a text with another one raises `ModelError`.

        So do pairs of texts if the model `reads` single texts, and the other way round; None takes both. `thresholds`
        has the lowest probability at which each label is answered, and is None if a text has one label.
        """
        self.thresholds = thresholds
        self.reads = reads
        self.session, self.format, self.device = session, session.format, session.device
        self.tokenizer = tokenizer
        self.label_names = tuple(label_names)
        self.truncation, self.max_tokens = truncation, truncation.limit
        self._embeddings = embeddings if vocabulary_of(tokenizer) > embeddings else math.inf  # asked once, it is slow
        self._process, self._alone = os.getpid(), threading.Lock()

    def logits(self, texts: Sequence[Text], *, progress: Callable[[int], object] = lambda done: None) -> np.ndarray:
        """Return logits, float32, shape (texts, classes); `progress` is called with the number of texts of each batch.

        Texts are tokenized, cut as `truncation` says, sorted by length and packed into batches of about equal token
        count, so that there is little padding. The logits are in the order of the texts. Only token ids are held in
        memory.
        """
        if os.getpid() != self._process:
            raise ModelError(
                f"{self.format}: was loaded in process {self._process}, and this process is a fork of it",
                hint='call distill.load in the new process, or start it with multiprocessing.get_context("spawn")',
            )
        read = plain(texts, self.reads, self.format)
        logits = np.zeros((len(read), len(self.label_names)), np.float32)
        arrays = [row for start in range(0, len(read), TOKENISED_AT_ONCE) for row in self._arrays(read, start)]
        packed = list(pack([len(row[0]) for row in arrays], self.session.batch_tokens))
        batches = (self._batch([arrays[row] for row in rows]) for rows in packed)
        for rows, answers in zip(packed, self.session.run_each(batches), strict=True):
            check_outputs(answers.shape[1], len(self.label_names), self.format)
            logits[rows] = answers
            progress(len(rows))
        return logits

    def warm_up(self) -> None:
        """Run a batch on each thread of the session, which may load or compile something for it."""
        one = np.ones((1, 1), np.int64)
        list(self.session.run_each([(one, one)] * (os.cpu_count() or 1)))

    def cut_of(self, texts: Sequence[Text]) -> Cut:
        """Return how much of `texts` it cuts off."""
        read = plain(texts, self.reads, self.format)
        starts = range(0, len(read), TOKENISED_AT_ONCE)
        return cut_of(
            [length for start in starts for length in self._encoded(read, start).lengths], self.truncation.max_tokens
        )

    def _batch(self, rows: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
        """Return ids and mask, and token types if the rows have them, padded to the longest."""
        ids, *types = zip(*rows, strict=True)
        padded = (pad(kinds, 0)[0] for kinds in types)
        return *pad(ids, self.tokenizer.pad_token_id), *padded

    def _arrays(self, texts: Sequence[str], start: int) -> Iterator[tuple[np.ndarray, ...]]:
        ids, _, types = self._encoded(texts, start)
        if self._embeddings < math.inf:
            for token in (max(row) for row in ids):
                if token >= self._embeddings:  # OpenVINO would read zeros, and a GPU end the process
                    named = self.tokenizer.convert_ids_to_tokens(token)
                    raise ModelError(f"{self.format}: a text has the token {named!r}, which the model does not embed")
        columns = (ids,) if types is None else (ids, types)
        return (tuple(np.asarray(row, np.int32) for row in rows) for rows in zip(*columns, strict=True))

    def _encoded(self, texts: Sequence[str], start: int) -> Encoded:
        with self._alone:  # `encode` is not for several threads
            return encode(self.tokenizer, texts[start : start + TOKENISED_AT_ONCE], self.truncation)


def pack(lengths: Sequence[int], batch_tokens: int, batch_pairs: float = math.inf) -> Iterator[np.ndarray]:
    """Yield the indices of each batch, so that rows x longest stays within `batch_tokens`.

    Attention holds a number for each pair of tokens, so rows x longest x longest also stays within `batch_pairs`. A
    text that exceeds a limit alone gets a batch of its own. The longest texts come first, so that a batch that does not
    fit into memory fails at once and not after an hour.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    start = 0
    while start < len(order):
        longest = max(1, lengths[order[start]])
        rows = max(1, int(min(batch_tokens // longest, batch_pairs / longest**2)))
        yield order[start : start + rows]
        start += rows


def pad(ids: Sequence[Sequence[int] | np.ndarray], pad_token_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and attention mask, int64, both (texts, longest), padded on the right."""
    longest = max(map(len, ids))
    input_ids = np.full((len(ids), longest), pad_token_id, np.int64)
    attention_mask = np.zeros((len(ids), longest), np.int64)
    for row, tokens in enumerate(ids):
        input_ids[row, : len(tokens)] = tokens
        attention_mask[row, : len(tokens)] = 1
    return input_ids, attention_mask


def load(
    folder: Path | str, device: str = "auto", *, dtype: str | None = None, threads: int | None = None
) -> TextClassifier:
    """Return the classifier in a run folder, a folder of exports, one export, a cascade or any transformers model.

    A transformers model may also be a name on the Hub. From a folder of exports it takes the one that was fastest in
    its proof (`fastest_export`). The runtime and dtype are those of `sessions.open_session`. Texts are cut as
    `identify` says. Raises `ModelError` if the model is no classifier or its configuration has an invalid value of
    ours, `DeviceError` if the device is missing.
    """
    if (Path(folder) / EXPORT_PROOFS).is_file() and not (Path(folder) / "config.json").is_file():
        folder, device = fastest_export(Path(folder), device)
    name = str(folder)
    if is_cascade(Path(folder)):
        found = read_cascade(Path(folder))
        steps = [load(model, device_of_step(model, device), threads=threads) for model in found.models]
        return Cascade(steps, found.thresholds, list(map(str, found.models)), found.label_names, found.label_map)
    if is_baseline(Path(folder)):
        if device == "cuda":
            raise DeviceError(f"{name}: a baseline runs on CPUs", hint="--device cpu")
        with needing_training(f"{name}: a baseline"):
            from distill.inference.linear import LinearClassifier
        return LinearClassifier.load(Path(folder))
    config, tokenizer, truncation = identify(name)
    session = open_session(name, config, device, dtype=dtype, threads=threads)
    check_new_cpu(Path(name), session, thresholds_of(config))
    return Classifier(
        session, tokenizer, class_names(config, name), truncation, embeddings=embeddings_of(config),
        reads=reads_of(config), thresholds=thresholds_of(config),
    )  # fmt: skip


def device_of_step(model: Path, device: str) -> str:
    """Return the device for a classifier of a cascade: "cpu" for one that runs on no other, else `device`."""
    for_cpus = is_baseline(model) or (model / OPENVINO_WEIGHTS).is_file() or model.name in FOR_CPUS
    return "cpu" if for_cpus else device


def fastest_export(folder: Path, device: str) -> tuple[Path, Device]:
    """Return the folder and device of the export with the highest throughput (texts per second) in its proof.

    With "auto", all devices of this machine count. Formats whose runtime is not installed are skipped. Raises
    `ModelError` if no format was timed on `device`.
    """
    wanted = sorted({"cpu", gpu_of("auto")} if device == "auto" else {gpu_of(device)})
    rates: dict[tuple[Path, Device], float] = {}
    for name, proof in read_proofs(folder).items():
        rate, timed_on = proof["texts_per_second"], proof["device"]
        if proof["passed"] and rate and timed_on in wanted and (folder / name).is_dir() and can_run(name, timed_on):
            rates[folder / name, timed_on] = rate
    if not rates:
        raise ModelError(
            f"{folder}: none of its formats that run here was timed on {' or '.join(wanted)}",
            hint="name one of its folders, or export again with --device",
        )
    return max(rates, key=rates.__getitem__)


def identify(
    name: str,
) -> tuple[PretrainedConfig | ExportedConfig, PreTrainedTokenizerBase | ExportedTokenizer, Truncation]:
    """Return a classifier's configuration, tokenizer and truncation, without loading its weights.

    It reads as many tokens as the tokenizer's model_max_length says. Which of them, its configuration says if it was
    trained by distill; else the tokenizer does, whose truncation side may be the left one. The files of an export are
    read without torch and transformers.

    Raises `ModelError` if the model is no classifier, gives a text a number, has no tokenizer or another model's, has a
    class without a name, or has an invalid threshold or truncation.
    """
    read: tuple[Callable[..., Any], Callable[..., Any]] = (read_config, read_tokenizer)
    if not is_export(Path(name)):
        with needing_training(f"{name}: a model that is not exported"):
            from distill.models.loading import load_config, load_tokenizer
        read = (load_config, load_tokenizer)
    config = read[0](name)
    if not is_classifier(config):
        raise ModelError(f"{name}: not a text classifier, but {', '.join(config.architectures or ['unknown'])}")
    task_of(config, name)
    class_names(config, name)  # raises an error before the weights are read, as the next one does
    thresholds_of(config)
    tokenizer = read[1](name)
    share_padding(config, tokenizer)
    max_tokens = min(tokenizer.model_max_length, token_limit(config) or tokenizer.model_max_length)
    check_fit(config, name, max_tokens=max_tokens, vocabulary=vocabulary_of(tokenizer, added=False))
    return config, tokenizer, Truncation(max_tokens, kept_part(config, tokenizer))


def weights_bytes(folder: Path) -> int:
    """Return the size in bytes of a model folder's weights, of any format (see weights.weight_files)."""
    return sum(file.stat().st_size for file in weight_files(str(folder)))


def open_session(
    name: str, config: PretrainedConfig, device: str, *, dtype: str | None = None, threads: int | None = None
) -> Session:
    """Return the session of a model folder or Hub name: model.onnx in ONNX Runtime, openvino_model.xml in OpenVINO.

    Anything else runs in torch, in the dtype it was saved in or in `dtype` ("bfloat16"). `device` "auto" is CUDA if
    that can run the model. Raises `ModelError` if the model cannot be loaded or has more or fewer outputs than its
    configuration has classes, `DeviceError` if the device is missing.
    """
    folder = Path(name)
    if (folder / OPENVINO_WEIGHTS).is_file():
        check_whole(folder, ANSWERING)
        if device == "cuda":
            raise DeviceError(f"{name}: OpenVINO formats run on CPUs", hint="--device cpu")
        session = OpenVinoSession(folder / OPENVINO_WEIGHTS, threads, format=_format(folder, "openvino"))
    elif (folder / ONNX_WEIGHTS).is_file():
        check_whole(folder, ANSWERING)
        is_for_cpus = folder.name in FOR_CPUS or not onnx_runs_on_cuda()
        resolved = "cpu" if device == "auto" and is_for_cpus else gpu_of(device)
        session = OnnxSession(folder / ONNX_WEIGHTS, resolved, threads, format=_format(folder, "onnx"))
    else:
        from distill.inference.torch_session import TorchSession, load_torch
        from distill.machine.devices import resolve_device

        return TorchSession(load_torch(name, config, dtype), resolve_device(device))
    if is_ngrams(config):
        session.batch_tokens = max(session.batch_tokens, NGRAM_BATCH_TOKENS)
    if isinstance(session.outputs, int):  # if the graph leaves it open, Classifier.logits checks the first answers
        check_outputs(session.outputs, config.num_labels, name)
    return session


def _format(folder: Path, runtime: str) -> str:
    return folder.name if folder.name.startswith(f"{runtime}-") else runtime
