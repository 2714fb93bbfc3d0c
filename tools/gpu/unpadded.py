"""A classifier of transformers that computes no padding: all texts in one row, and attention within each text.

On a GPU, attention is torch's `varlen_attn` (torch.nn.attention.varlen): Flash Attention, which takes no mask. With a
mask, torch's scaled_dot_product_attention runs another kernel, and every other product computes the padding too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from distill.export.attention import MODERNBERT, MPNET
from distill.inference.sessions import BATCH_TOKENS, Batch
from distill.inference.torch_session import TORCH_FORMATS
from distill.machine.devices import Device
from distill.models.config import TOKEN_TYPES, first_position, inputs_of
from distill.models.first_token import ARCHITECTURES
from distill.models.loading import layer_count, layer_list

NAME = "distill_unpadded"  # among transformers' attention implementations
NO_WINDOW = (-1, -1)


class UnpaddedSession:
    """A transformers model in eval mode, with the interface of distill's sessions: numpy in, numpy out.

    Its last layer computes all tokens, as the model itself does. It computes in the dtype of its weights. On a GPU that
    must be fp16 or bf16; on a CPU, fp16 becomes fp32. Raises `ValueError` if the head may read more than a text's first
    token, or if the model computes its attention itself.
    """

    def __init__(self, model: PreTrainedModel, device: Device):
        if not reads_first_token_only(model.config):
            raise ValueError(f"{model.config.model_type}: wants a head that reads the first token, and plain attention")
        self.format = f"{TORCH_FORMATS[model.dtype]} unpadded"
        if model.dtype == torch.float16 and device == "cpu":
            model = model.float()
        # transformers builds no mask for an implementation of which it knows none.
        AttentionInterface.register(NAME, _attention)
        model.set_attn_implementation(NAME)
        self.model = model.to(torch.device(device)).eval()
        self.device: Device = device
        self.batch_tokens = BATCH_TOKENS[device]
        layer_list(model, layer_count(model.config))[1][-1].register_forward_hook(self._first_tokens)

    def run(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, token_types: np.ndarray | None = None
    ) -> np.ndarray:
        """Return float32 logits (batch, classes) of int64 ids and mask, both (batch, tokens)."""
        return self.forward(self.packed(input_ids, attention_mask, token_types)).float().cpu().numpy()

    def run_each(self, batches: Iterable[Batch]) -> Iterator[np.ndarray]:
        """Yield the logits of each batch, in order."""
        return (self.run(*batch) for batch in batches)

    def packed(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, token_types: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Return what the model takes, on its device: ids (1, all tokens), their positions, and where texts begin."""
        is_token = attention_mask.astype(bool)
        lengths = is_token.sum(axis=1)
        starts = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
        config = self.model.config
        given = {"input_ids": input_ids, TOKEN_TYPES: token_types}
        columns = {
            **inputs_of(config, given),
            "position_ids": attention_mask.cumsum(axis=1) - 1 + first_position(config),
        }
        moved = {name: torch.from_numpy(column[is_token][None]).to(self.device) for name, column in columns.items()}
        starts = torch.from_numpy(starts).to(self.device)
        longest = int(lengths.max())
        # The names under which transformers takes them for its own Flash Attention.
        bounds = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": longest, "max_length_k": longest}
        return moved | bounds

    @torch.inference_mode()
    def forward(self, packed: dict[str, Any]) -> torch.Tensor:
        """Return the logits (texts, classes) of `packed` texts, on the device."""
        self._starts = packed["cu_seq_lens_q"][:-1]
        return self.model(**packed).logits

    def _first_tokens(self, module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        """Give the head each text's first token, as a batch of texts of one token."""
        hidden = output[0] if isinstance(output, tuple) else output
        first = hidden[0, self._starts].unsqueeze(1)
        return (first, *output[1:]) if isinstance(output, tuple) else first


def reads_first_token_only(config: PretrainedConfig) -> bool:
    """Say whether the head reads a text's first token alone, and the attention can be replaced."""
    if config.model_type == MODERNBERT:
        return config.classifier_pooling == "cls"
    return config.model_type in ARCHITECTURES and config.model_type != MPNET


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention within each text: (1, heads, tokens, size) in, (1, tokens, heads, size) out."""
    rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]  # (tokens, heads, size)
    settings: dict[str, Any] = {}  # only what differs from the defaults, since torch 2.11 knows fewer than 2.13
    if sliding_window is not None:
        each_side = sliding_window - 1  # transformers adds 1, as for Flash Attention
        settings["window_size"] = (each_side, each_side)
    if scaling not in (None, query.shape[-1] ** -0.5):
        settings["scale"] = scaling
    kernel = varlen_attn if query.is_cuda else text_by_text
    return kernel(*rows, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, **settings).unsqueeze(0), None


def text_by_text(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    *_: Any,
    scale: float | None = None,
    window_size: tuple[int, int] = NO_WINDOW,
) -> torch.Tensor:
    """Compute what `varlen_attn` does, for devices that lack it: tensors (tokens, heads, size), one text at a time."""
    outputs = []
    for start, end in itertools.pairwise(cu_seq_q.tolist()):
        places = torch.arange(end - start, device=query.device)
        distance = places[None, :] - places[:, None]  # of a key from a query
        near = None if window_size == NO_WINDOW else (distance >= -window_size[0]) & (distance <= window_size[1])
        text = [tensor[start:end].transpose(0, 1) for tensor in (query, key, value)]
        outputs.append(scaled_dot_product_attention(*text, attn_mask=near, scale=scale).transpose(0, 1))
    return torch.cat(outputs)
