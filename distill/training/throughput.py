"""Measure the speed of a training: texts and tokens per second, padding, and the share of the device's peak."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from distill.machine.devices import Device, peak_memory_bytes
from distill.models.config import token_limit
from distill.models.first_token import first_token_only, last_layer

log = logging.getLogger("distill")

PEAK_SIZE: dict[Device, int] = {"cpu": 1_024, "cuda": 8_192}  # large enough to reach the peak, and fast to compute
PEAK_CALLS = 12
CHECKED_TOKENS = 32  # length of the texts that check the three numbers of `forward_flops`
COUNTED = ("texts", "positions", "tokens", "squares")
FORWARD_AND_BACKWARD = 3  # the gradients of a matrix product are two more products of its size


def forward_flops(model: PreTrainedModel, *, first_token: bool) -> tuple[int, int, int] | None:
    """Return (c, a, b): the forward pass of a text of n tokens takes c + a * n + b * n * n operations.

    Only matrix products and attention count, and a multiplication and an addition are two operations. With
    `first_token`, the last layer computes only the first token (see first_token). torch counts the operations for texts
    of one, two and three tokens, which determine the three numbers; nothing random is drawn. Returns None if two longer
    texts cost something else (some models pad to windows or share work among texts), or if the model rejects such
    texts.
    """
    layer = last_layer(model) if first_token else None
    was_training = model.training
    model.eval()
    try:
        # torch does not count its fused attention on a CPU; plain products have as many operations.
        with first_token_only(layer), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            one, two, three = (_count(model, 1, tokens) for tokens in (1, 2, 3))
            tokens = min(CHECKED_TOKENS, token_limit(model.config) or CHECKED_TOKENS)
            checked = _count(model, 2, tokens)
    except Exception as error:  # noqa: BLE001 - a model that cannot be counted can still be trained
        log.debug("the operations of a text cannot be counted: %s", error)
        return None
    finally:
        model.train(was_training)
    square = (three - 2 * two + one) // 2
    linear = two - one - 3 * square
    constant = one - linear - square
    return (constant, linear, square) if checked == 2 * (constant + linear * tokens + square * tokens**2) else None


def _count(model: PreTrainedModel, texts: int, tokens: int) -> int:
    ids = torch.ones(texts, tokens, dtype=torch.long, device=model.device)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return counter.get_total_flops()


def peak_flops(device: Device, dtype: torch.dtype) -> float:
    """Time a few large matrix products on this device; return the operations per second of the fastest."""
    size = PEAK_SIZE[device]
    # Random, because a GPU multiplies equal numbers faster; from a generator that training does not use.
    matrix = torch.randn(size, size, generator=torch.Generator(device).manual_seed(0), dtype=dtype, device=device)
    seconds = []
    for _ in range(PEAK_CALLS):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


class Throughput:
    """Counts what one rank has trained on so far, and the time without evaluations.

    `flops` are those of a text (see `forward_flops`). `peak` is the operations per second of the rank's device or
    devices.
    """

    def __init__(self, device: Device, flops: tuple[int, int, int] | None, peak: float):
        self.device, self.flops, self.peak = device, flops, peak
        self.texts = self.positions = 0
        self.tokens: torch.Tensor | int = 0  # tensors, because reading them at every step would stall a GPU
        self.squares: torch.Tensor | int = 0
        self.started: float | None = None
        self.evaluation_seconds = 0.0
        self.earlier = 0.0  # seconds before the checkpoint that training resumed from

    def totals(self) -> dict[str, float]:
        """Return the counts and times so far, for a checkpoint; see `go_on_from`."""
        counts = dict(zip(COUNTED, self.counts(), strict=True))
        return {**counts, "seconds": self._seconds(), "evaluation_seconds": self.evaluation_seconds}

    def go_on_from(self, totals: Mapping[str, float]) -> None:
        """Continue from the `totals` of a checkpoint."""
        self.texts, self.positions, self.tokens, self.squares = (int(totals[name]) for name in COUNTED)
        self.earlier, self.evaluation_seconds = totals["seconds"], totals["evaluation_seconds"]

    def _seconds(self) -> float:
        return self.earlier + (time.perf_counter() - self.started if self.started is not None else 0.0)

    def add(self, attention_mask: torch.Tensor) -> None:
        """Count a batch by its mask, shape (batch, tokens)."""
        if self.started is None:
            self.started = time.perf_counter()
        lengths = attention_mask.sum(dim=1)
        self.texts += len(attention_mask)
        self.positions += attention_mask.numel()
        self.tokens = self.tokens + lengths.sum()
        self.squares = self.squares + (lengths * lengths).sum()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Count the time of the block as evaluation, not as training."""
        start = time.perf_counter()
        if self.started is None:  # a run may begin with an evaluation
            self.started = start
        try:
            yield
        finally:
            self.evaluation_seconds += time.perf_counter() - start

    def counts(self) -> list[int]:
        """Return the counts that add up over ranks: texts, positions, tokens, squared lengths."""
        return [self.texts, self.positions, int(self.tokens), int(self.squares)]

    def figures(self, seconds: float, counts: list[int], ranks: int) -> dict[str, float | None]:
        """Return the rates over `seconds`, for `counts` that are summed over all `ranks`.

        `model_flop_utilisation` is the share of the peak that forward and backward passes of real tokens reach. The
        rest went into padding, dropout, the optimizer, waiting, and a teacher that runs beside the student. It is None
        if the operations of a text are not known. No training exceeds its device's peak: a share above 1 means that the
        peak was measured on a busy machine, so peak and share become None.
        """
        texts, positions, tokens, squares = counts
        trained = max(seconds - self.evaluation_seconds, 1e-9)
        rate = None
        if self.flops is not None:
            constant, linear, square = self.flops
            rate = FORWARD_AND_BACKWARD * (constant * texts + linear * tokens + square * squares) / trained
        peak: float | None = self.peak * ranks
        if rate is not None and rate > peak:
            peak = None
        return {
            "evaluation_seconds": self.evaluation_seconds,
            "samples_per_second": texts / seconds,
            "tokens_per_second": tokens / seconds,
            "padding_fraction": 1 - tokens / positions if positions else None,
            "flops_per_second": rate,
            "peak_flops_per_second": peak,
            "model_flop_utilisation": None if rate is None or peak is None else rate / peak,
        }

    def shown(self) -> dict[str, str]:
        """Return the figures of this rank so far, for the progress line."""
        if self.started is None:
            return {}
        seconds = self._seconds()
        found = self.figures(seconds, self.counts(), ranks=1)
        trained = seconds - self.evaluation_seconds
        memory = peak_memory_bytes(self.device)
        return {
            "texts/s": f"{self.texts / trained:.1f}" if trained > 0 else "-",
            **({} if (share := found["model_flop_utilisation"]) is None else {"of peak": f"{100 * share:.0f} %"}),
            "padding": f"{100 * (found['padding_fraction'] or 0):.0f} %",
            **({"memory": f"{memory / 1e9:.1f} GB"} if memory else {}),
        }
