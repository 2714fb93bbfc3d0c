"""Texts to logits: tokenised, packed by length, run in a session, put back in order."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from distill.errors import ModelError
from distill.inference.runtimes import can_run
from distill.inference.sessions import Session, open_session
from distill.machine.devices import Device, resolve_device
from distill.models.calibration import temperature_of
from distill.models.loading import (
    check_fit,
    check_outputs,
    check_single_label,
    class_names,
    is_classifier,
    load_config,
    load_tokenizer,
    share_padding,
    token_limit,
    vocabulary_of,
)
from distill.models.weights import weight_files
from distill.storage.exports import EXPORT_PROOFS, read_proofs

TOKENISED_AT_ONCE = 4_096  # a tokenizer notes where each token stood, which takes far more than the token itself


class Classifier:
    """A tokenizer, a session and class names: `classifier(texts)` gives labels, in the texts' order.

    Several threads may share one. A process that is forked may not: runtimes have threads, which do not come along.
    """

    def __init__(
        self, session: Session, tokenizer: PreTrainedTokenizerBase, label_names: Sequence[str], max_tokens: int
    ):
        self.session = session
        self.tokenizer = tokenizer
        self.label_names = tuple(label_names)
        self.max_tokens = max_tokens
        self._process, self._alone = os.getpid(), threading.Lock()

    def __call__(self, texts: Sequence[str]) -> list[dict[str, str | float]]:
        """Return the likeliest label of each text and its probability, as {"label", "score"}."""
        probabilities = self.probabilities(texts)
        best = probabilities.argmax(axis=1)
        return [
            {"label": self.label_names[label], "score": float(row[label])}
            for label, row in zip(best, probabilities, strict=True)
        ]

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Return class probabilities, float32, shape (texts, classes); raises `ModelError` where logits give none."""
        logits = self.logits(texts)
        check_finite(logits, f"{self.session.format} on {self.session.device}")
        return softmax(logits, axis=1)

    def logits(self, texts: Sequence[str], *, progress: Callable[[int], object] = lambda done: None) -> np.ndarray:
        """Return logits, float32, shape (texts, classes); `progress` is told how many texts each batch held.

        Texts are tokenised, cut at `max_tokens`, sorted by length and packed into batches of about equal token count,
        so that little is spent on padding; the order of the texts is restored. What is held of a text is its token ids.
        """
        if isinstance(texts, str):
            raise TypeError("wants a list of texts, got one text: [text]")
        if os.getpid() != self._process:
            raise ModelError(
                f"{self.session.format}: was loaded in the process {self._process}, of which this is a fork",
                hint='distill.load in the new process, or start it with multiprocessing.get_context("spawn")',
            )
        logits = np.zeros((len(texts), len(self.label_names)), np.float32)
        if not len(texts):
            return logits
        texts = [_encodable(text) for text in texts[:]]  # a column of datasets gives them one by one, slowly
        ids = [row for start in range(0, len(texts), TOKENISED_AT_ONCE) for row in self._ids(texts, start)]
        packed = list(pack([len(row) for row in ids], self.session.batch_tokens))
        batches = (pad([ids[row] for row in rows], self.tokenizer.pad_token_id) for rows in packed)
        for rows, answers in zip(packed, self.session.run_each(batches), strict=True):
            check_outputs(answers.shape[1], len(self.label_names), self.session.format)
            logits[rows] = answers
            progress(len(rows))
        return logits

    def _ids(self, texts: Sequence[str], start: int) -> Iterator[np.ndarray]:
        chunk = texts[start : start + TOKENISED_AT_ONCE]
        with self._alone:  # a tokenizer keeps how it cuts, and complains if two set that at once
            encoded = self.tokenizer(chunk, truncation=True, max_length=self.max_tokens, return_token_type_ids=False)
        return (np.asarray(row or nothing(self.tokenizer), np.int32) for row in encoded["input_ids"])


def check_finite(logits: np.ndarray, name: str) -> None:
    """Raise `ModelError` where a logit of the model `name` is not a number or infinite: that is no answer."""
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        raise ModelError(
            f"{name}: its logits on {len(broken)} of {len(logits)} texts are not finite (first: text {broken[0]})",
            hint="try it in fp32; where they are not finite there either, train it again at a lower learning rate",
        )


def _encodable(text: str) -> str:
    """Half of a surrogate pair, which no encoding holds, as the character that stands for what cannot be read."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def pack(lengths: Sequence[int], batch_tokens: int) -> Iterator[np.ndarray]:
    """Yield the indices of each batch, longest texts first, so that rows x longest stays within `batch_tokens`.

    A text longer than `batch_tokens` gets a batch of its own. Longest first: what does not fit into memory fails at
    once, not after an hour.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    start = 0
    while start < len(order):
        rows = max(1, batch_tokens // max(1, lengths[order[start]]))
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
) -> Classifier:
    """Return the classifier in a run folder, a folder of exports, one export or any transformers model (or Hub name).

    Of a folder of exports, the one that answered fastest when it was proved (`fastest_export`). What runs it, and in
    which dtype, is told in `sessions.open_session`. Texts are cut at the tokenizer's model_max_length. Raises
    `ModelError` where the model is no classifier or its calibration temperature no temperature, `DeviceError` where
    the device is not there.
    """
    name = str(folder)
    if (Path(folder) / EXPORT_PROOFS).is_file() and not (Path(folder) / "config.json").is_file():
        chosen, device = fastest_export(Path(folder), device)
        name = str(chosen)
    config, tokenizer, max_tokens = identify(name)
    session = open_session(name, config, device, dtype=dtype, threads=threads)
    return Classifier(session, tokenizer, class_names(config, name), max_tokens)


def fastest_export(folder: Path, device: str) -> tuple[Path, Device]:
    """Return the format in a folder of exports that answered most texts a second when it was proved, and where.

    "auto" is the device that served one of them best, of those that are here; formats whose runtime is not installed
    are passed over. Raises `ModelError` where none was timed on `device`.
    """
    wanted = sorted({"cpu", resolve_device("auto")} if device == "auto" else {resolve_device(device)})
    rates: dict[tuple[Path, Device], float] = {}
    for name, proof in read_proofs(folder).items():
        rate, timed_on = proof["texts_per_second"], proof["device"]
        if proof["passed"] and rate and timed_on in wanted and (folder / name).is_dir() and can_run(name, timed_on):
            rates[folder / name, timed_on] = rate
    if not rates:
        raise ModelError(
            f"{folder}: no format there that runs here was timed on {' or '.join(wanted)}",
            hint="name one of its folders, or export again, with --device",
        )
    return max(rates, key=lambda chosen: rates[chosen])


def identify(name: str) -> tuple[PretrainedConfig, PreTrainedTokenizerBase, int]:
    """Return a classifier's configuration, tokenizer and most tokens that it reads, without loading its weights.

    Raises `ModelError` where the model is no classifier, gives a text several labels or a number, its tokenizer is not
    there or not its own, a class has no name, or its calibration temperature is no temperature.
    """
    config = load_config(name)
    if not is_classifier(config):
        raise ModelError(f"{name}: not a text classifier, but {', '.join(config.architectures or ['unknown'])}")
    check_single_label(config, name)
    class_names(config, name)  # like the temperature: a broken one is an error here, before the weights are read
    temperature_of(config)
    tokenizer = load_tokenizer(name)
    share_padding(config, tokenizer)
    max_tokens = min(tokenizer.model_max_length, token_limit(config) or tokenizer.model_max_length)
    check_fit(config, name, max_tokens=max_tokens, vocabulary=vocabulary_of(tokenizer))
    return config, tokenizer, max_tokens


def weights_bytes(folder: Path) -> int:
    """Return the size of a model folder's weights in bytes: whatever runs it (see models.weight_files)."""
    return sum(file.stat().st_size for file in weight_files(str(folder)))


def nothing(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of a text of which the tokenizer makes no token, not even a special one: a model needs one."""
    known: tuple[Any, ...] = (tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return [next(token for token in known if token is not None)]
