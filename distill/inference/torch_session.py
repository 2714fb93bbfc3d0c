"""Run a classifier of transformers, from token ids to logits, in torch."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

from distill.errors import ModelError
from distill.inference.sessions import BATCH_TOKENS, NGRAM_BATCH_TOKENS, Batch
from distill.machine.devices import Device
from distill.models.config import TOKEN_TYPES, inputs_of, is_ngrams
from distill.models.first_token import first_token_only, last_layer
from distill.models.loading import load_weights

TORCH_FORMATS = {torch.float32: "torch-fp32", torch.float16: "torch-fp16", torch.bfloat16: "torch-bf16"}


class TorchSession:
    """A transformers model in eval mode.

    It computes in the dtype of its weights, but in fp32 for fp16 on a CPU: torch's fp16 kernels for CPUs are many times
    slower.
    """

    def __init__(self, model: PreTrainedModel, device: Device):
        self.format = TORCH_FORMATS[model.dtype]
        if model.dtype == torch.float16 and device == "cpu":
            model = model.float()
        self.model = model.to(torch.device(device)).eval()
        self.device: Device = device
        self.batch_tokens = max(BATCH_TOKENS[device], NGRAM_BATCH_TOKENS if is_ngrams(model.config) else 0)
        self._last_layer = last_layer(self.model)
        self._alone = threading.Lock()  # `first_token_only` changes the model while a batch runs

    @torch.inference_mode()
    def run(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, token_types: np.ndarray | None = None
    ) -> np.ndarray:
        arrays = {"input_ids": input_ids, "attention_mask": attention_mask, TOKEN_TYPES: token_types}
        inputs = {
            name: torch.from_numpy(array).to(self.device, non_blocking=True)
            for name, array in inputs_of(self.model.config, arrays).items()
        }
        with self._alone, first_token_only(self._last_layer):
            return self.model(**inputs).logits.float().cpu().numpy()

    def run_each(self, batches: Iterable[Batch]) -> Iterator[np.ndarray]:
        return (self.run(*batch) for batch in batches)


def load_torch(name: str, config: PretrainedConfig, dtype: str | None = None) -> PreTrainedModel:
    """Return the finished classifier `name` from safetensors; raises `ModelError` if a weight is missing."""
    model, missing = load_weights(name, config, dtype or "auto")
    if missing:
        raise ModelError(f"{name}: {len(missing)} weights are missing, first {missing[0]}")
    return model if model.dtype in TORCH_FORMATS else model.float()  # float64 becomes fp32
