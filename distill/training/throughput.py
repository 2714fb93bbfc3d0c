"""How fast a training is: texts and tokens per second, padding, and the share of the device's peak that it reaches."""

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
from distill.models.first_token import first_token_only, last_layer
from distill.models.loading import token_limit

log = logging.getLogger("distill")

PEAK_SIZE: dict[Device, int] = {"cpu": 1_024, "cuda": 8_192}  # wide enough for the peak, and done in a moment
PEAK_CALLS = 12
CHECKED_TOKENS = 32  # where what was counted must still hold
COUNTED = ("texts", "positions", "tokens", "squares")
FORWARD_AND_BACKWARD = 3  # a product's gradients are two more of its size


def forward_flops(model: PreTrainedModel, *, first_token: bool) -> tuple[int, int, int] | None:
    """Return what a text costs to answer: (c, a, b), of a text of n tokens c + a * n + b * n * n operations.

    Matrix products and attention alone, a multiplication and an addition as two; with `first_token`, the last layer
    works on the first token alone (see first_token). Counted by torch on texts of one, two and three tokens, which
    settle the three numbers; nothing random is drawn. None where that is not what two longer texts cost (a model that
    pads to windows of its own, or shares work among texts) or where the model does not take such texts.
    """
    layer = last_layer(model) if first_token else None
    was_training = model.training
    model.eval()
    try:
        # torch does not count its fused attention on a CPU; as plain products it has the same operations.
        with first_token_only(layer), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            one, two, three = (_count(model, 1, tokens) for tokens in (1, 2, 3))
            tokens = min(CHECKED_TOKENS, token_limit(model.config) or CHECKED_TOKENS)
            checked = _count(model, 2, tokens)
    except Exception as error:  # noqa: BLE001 - any model that can be trained may be; this is a figure about it
        log.debug("what a text costs cannot be counted: %s", error)
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
    """Return the operations per second of the fastest of a few large matrix products on this device, timed now."""
    size = PEAK_SIZE[device]
    # Not of equal numbers, which a GPU multiplies faster; nor drawn from the generator that training draws from.
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
    """What one rank has trained on so far, and in how long, evaluations left out.

    `flops` are those of a text (see `forward_flops`), `peak` the operations per second that its device, or all of its
    devices, can do.
    """

    def __init__(self, device: Device, flops: tuple[int, int, int] | None, peak: float):
        self.device, self.flops, self.peak = device, flops, peak
        self.texts = self.positions = 0
        self.tokens: torch.Tensor | int = 0  # tensors: reading them at every step would stall a GPU
        self.squares: torch.Tensor | int = 0
        self.started: float | None = None
        self.evaluation_seconds = 0.0
        self.earlier = 0.0  # seconds before the checkpoint that training went on from

    def totals(self) -> dict[str, float]:
        """Return what was trained on so far, and in how long, for a checkpoint; see `go_on_from`."""
        counts = dict(zip(COUNTED, self.counts(), strict=True))
        return {**counts, "seconds": self._seconds(), "evaluation_seconds": self.evaluation_seconds}

    def go_on_from(self, totals: Mapping[str, float]) -> None:
        """Count from the `totals` of a checkpoint."""
        self.texts, self.positions, self.tokens, self.squares = (int(totals[name]) for name in COUNTED)
        self.earlier, self.evaluation_seconds = totals["seconds"], totals["evaluation_seconds"]

    def _seconds(self) -> float:
        return self.earlier + (time.perf_counter() - self.started if self.started is not None else 0.0)

    def add(self, attention_mask: torch.Tensor) -> None:
        """Count a batch, by its mask of shape (batch, tokens)."""
        if self.started is None:
            self.started = time.perf_counter()
        lengths = attention_mask.sum(dim=1)
        self.texts += len(attention_mask)
        self.positions += attention_mask.numel()
        self.tokens = self.tokens + lengths.sum()
        self.squares = self.squares + (lengths * lengths).sum()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Do not count the block's time as training."""
        start = time.perf_counter()
        if self.started is None:  # an evaluation comes first
            self.started = start
        try:
            yield
        finally:
            self.evaluation_seconds += time.perf_counter() - start

    def counts(self) -> list[int]:
        """Return what adds up over ranks: texts, positions, tokens, squared lengths."""
        return [self.texts, self.positions, int(self.tokens), int(self.squares)]

    def figures(self, seconds: float, counts: list[int], ranks: int) -> dict[str, float | None]:
        """Return the rates over `seconds` of all `ranks`, whose `counts` were added up.

        `model_flop_utilisation` is the share of the peak that went into the texts' own tokens, forwards and backwards;
        padding, dropout, the optimizer and waiting are all in the rest. A teacher that runs beside is not counted.
        None where what a text costs is not known. No training passes its device's peak, so if the share comes out above
        1, the peak was mistimed on a busy machine, and both are None.
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
        """Return the figures of this rank so far, for a line on the screen."""
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
