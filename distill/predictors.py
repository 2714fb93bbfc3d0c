"""Texts to logits, with torch and ONNX Runtime behind the same face."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail as OnnxRuntimeFail
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidProtobuf as OnnxRuntimeInvalid
from scipy.special import softmax
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from distill.calibration import CONFIG_KEY
from distill.devices import Device, resolve_device
from distill.errors import DeviceError, ModelError
from distill.first_token import first_token_only, last_layer
from distill.models import (
    ONNX_WEIGHTS,
    WEIGHT_ERRORS,
    check_fit,
    is_classifier,
    load_config,
    load_tokenizer,
    token_limit,
    weight_files,
)

# Padded tokens in one batch. Larger batches stop being faster long before they stop costing memory.
BATCH_TOKENS: dict[Device, int] = {"cpu": 2_048, "cuda": 65_536}
TORCH_FORMATS = {torch.float32: "torch-fp32", torch.float16: "torch-fp16", torch.bfloat16: "torch-bf16"}


class Session(Protocol):
    """A classifier on a device: token ids in, logits out."""

    device: Device
    format: str

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Return float32 logits (batch, classes) of int64 ids and mask, both (batch, tokens)."""
        ...


class TorchSession:
    """A transformers model in eval mode, in the dtype of its weights, its logits divided by its config's temperature.

    Except fp16 on a CPU, which computes in fp32: torch's fp16 kernels for CPUs are many times slower.
    """

    def __init__(self, model: PreTrainedModel, device: Device):
        self.format = TORCH_FORMATS[model.dtype]
        if model.dtype == torch.float16 and device == "cpu":
            model = model.float()
        self.model = model.to(torch.device(device)).eval()
        self.device: Device = device
        self._last_layer = last_layer(self.model)

    @torch.inference_mode()
    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        ids = torch.from_numpy(input_ids).to(self.device, non_blocking=True)
        mask = torch.from_numpy(attention_mask).to(self.device, non_blocking=True)
        with first_token_only(self._last_layer):
            logits = self.model(input_ids=ids, attention_mask=mask).logits.float().cpu().numpy()
        return logits / calibration_temperature(self.model.config)


class OnnxSession:
    """An ONNX file with inputs input_ids and attention_mask and output logits, in ONNX Runtime.

    The logits are the graph's own: what calibrates them is in the graph, for those who run it without distill.
    """

    def __init__(self, path: Path, device: Device, threads: int | None = None, *, format: str = "onnx"):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # warnings are about the graph's history, nothing a user can act on
        options.intra_op_num_threads = threads or _cores()
        providers = ["CPUExecutionProvider"]
        if device == "cuda":
            if not onnx_runs_on_cuda():
                raise DeviceError(
                    f"{path.parent}: this onnxruntime has no CUDA provider", hint="pip install onnxruntime-gpu"
                )
            onnxruntime.preload_dlls()  # the CUDA libraries that torch brought
            providers = ["CUDAExecutionProvider", *providers]
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except (OnnxRuntimeFail, OnnxRuntimeInvalid, RuntimeError) as error:
            raise ModelError(f"{path}: ONNX Runtime cannot load it: {str(error).splitlines()[0]}") from error
        # ONNX Runtime falls back to the CPU in silence where CUDA cannot start; a figure would then carry a false name.
        if device == "cuda" and self._session.get_providers()[0] != "CUDAExecutionProvider":
            raise DeviceError(
                f"{path}: ONNX Runtime could not start CUDA", hint="distill works on the CPU: --device cpu"
            )
        self._inputs = {item.name for item in self._session.get_inputs()}
        self.device: Device = device
        self.format = format

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        feed = {"input_ids": input_ids, "attention_mask": attention_mask}
        if "token_type_ids" in self._inputs:  # graphs of other exporters
            feed["token_type_ids"] = np.zeros_like(input_ids)
        return self._session.run(["logits"], feed)[0].astype(np.float32)


class Classifier:
    """A tokenizer, a session and class names: `classifier(texts)` gives labels, in the texts' order."""

    def __init__(
        self, session: Session, tokenizer: PreTrainedTokenizerBase, label_names: Sequence[str], max_tokens: int
    ):
        self.session = session
        self.tokenizer = tokenizer
        self.label_names = tuple(label_names)
        self.max_tokens = max_tokens

    def __call__(self, texts: Sequence[str]) -> list[dict[str, str | float]]:
        """Return the likeliest label of each text and its probability, as {"label", "score"}."""
        probabilities = self.probabilities(texts)
        best = probabilities.argmax(axis=1)
        return [
            {"label": self.label_names[label], "score": float(row[label])}
            for label, row in zip(best, probabilities, strict=True)
        ]

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Return class probabilities, float32, shape (texts, classes)."""
        return softmax(self.logits(texts), axis=1)

    def logits(self, texts: Sequence[str], *, progress: Callable[[int], object] = lambda done: None) -> np.ndarray:
        """Return logits, float32, shape (texts, classes); `progress` is told how many texts each batch held.

        Texts are tokenised in one call, cut at `max_tokens`, sorted by length and packed into batches of about equal
        token count, so that little is spent on padding; the order of the texts is restored.
        """
        logits = np.zeros((len(texts), len(self.label_names)), np.float32)
        if not len(texts):
            return logits
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens, return_token_type_ids=False)
        ids: list[list[int]] = encoded["input_ids"]
        for rows in pack([len(row) for row in ids], BATCH_TOKENS[self.session.device]):
            logits[rows] = self.session.run(*pad([ids[row] for row in rows], self.tokenizer.pad_token_id))
            progress(len(rows))
        return logits


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


def pad(ids: Sequence[Sequence[int]], pad_token_id: int) -> tuple[np.ndarray, np.ndarray]:
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
    """Return the classifier in a run folder, an export folder or any transformers model (also by Hub name).

    A folder with model.onnx runs in ONNX Runtime, any other in torch, in the dtype it was saved in or in `dtype`
    ("bfloat16"). Texts are cut at the tokenizer's model_max_length. Raises `ModelError` where the model is no
    classifier or its calibration temperature no temperature, `DeviceError` where the device is not there.
    """
    name = str(folder)
    config, tokenizer, max_tokens = identify(name)
    is_onnx = (Path(folder) / ONNX_WEIGHTS).is_file()
    resolved = "cpu" if device == "auto" and is_onnx and not onnx_runs_on_cuda() else resolve_device(device)
    if is_onnx:
        format_ = Path(folder).name if Path(folder).name.startswith("onnx-") else "onnx"
        session: Session = OnnxSession(Path(folder) / ONNX_WEIGHTS, resolved, threads, format=format_)
    else:
        session = TorchSession(load_torch(name, config, dtype), resolved)
    return Classifier(session, tokenizer, label_names(config), max_tokens)


def identify(name: str) -> tuple[PretrainedConfig, PreTrainedTokenizerBase, int]:
    """Return a classifier's configuration, tokenizer and most tokens that it reads, without loading its weights.

    Raises `ModelError` where the model is no classifier, its tokenizer is not there or not its own, or its calibration
    temperature is no temperature.
    """
    config = load_config(name)
    if not is_classifier(config):
        raise ModelError(f"{name}: not a text classifier, but {', '.join(config.architectures or ['unknown'])}")
    calibration_temperature(config)  # a broken one is an error here, before the weights are read
    tokenizer = load_tokenizer(name)
    max_tokens = min(tokenizer.model_max_length, token_limit(config) or tokenizer.model_max_length)
    check_fit(config, name, max_tokens=max_tokens, vocabulary=len(tokenizer))
    return config, tokenizer, max_tokens


def onnx_runs_on_cuda() -> bool:
    """Say whether the installed ONNX Runtime has a CUDA provider; the one for CPUs, which pip installs, has none."""
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def load_torch(name: str, config: PretrainedConfig, dtype: str | None = None) -> PreTrainedModel:
    """Return the finished classifier `name` from safetensors; raises `ModelError` where a weight of it is missing."""
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name, config=config, dtype=dtype or "auto", use_safetensors=True, output_loading_info=True
        )
    except WEIGHT_ERRORS as error:
        raise ModelError(f"{name}: cannot be loaded: {str(error).splitlines()[0]}") from error
    if report["missing_keys"]:
        raise ModelError(
            f"{name}: {len(report['missing_keys'])} weights are missing, first {min(report['missing_keys'])}"
        )
    return model


def calibration_temperature(config: PretrainedConfig) -> float:
    """Return what the configuration says the logits are to be divided by; 1.0 where it says nothing."""
    value = getattr(config, CONFIG_KEY, None)
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ModelError(f"{config.name_or_path}: config.json: {CONFIG_KEY} must be a number above 0, got {value!r}")
    return float(value)


def label_names(config: PretrainedConfig) -> tuple[str, ...]:
    """Return the class names in the order of the logits."""
    return tuple(config.id2label[index] for index in range(config.num_labels))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def weights_bytes(folder: Path) -> int:
    """Return the size of a model folder's weights in bytes: of model.onnx and its data, or of the safetensors."""
    return sum(file.stat().st_size for file in weight_files(str(folder)))
