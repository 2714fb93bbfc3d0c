"""A transformers Trainer that trains a classifier on its labels."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from distill.models.config import inputs_of
from distill.training.embeddings import summed_by_row
from distill.training.fsdp import enable_cpu_sharding
from distill.training.losses import gold_loss
from distill.training.micro_batches import MICRO_BATCHES, micro_batches_of
from distill.training.throughput import Throughput


class ClassificationTrainer(Trainer):
    """Trains with `gold_loss`, averaged over all examples of a step, however they are batched."""

    loss_is_scheduled = False
    reads_all_tokens = False  # whether training reads more of the last layer than the first token, as the head does
    throughput: Throughput  # set after construction

    def __init__(self, *args: Any, class_weights: Sequence[float] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.class_weights = class_weights
        # So Trainer counts the examples of all accumulated batches, and does not divide the loss once more.
        self.model_accepts_loss_kwargs = True

    def create_accelerator_and_postprocess(self) -> None:
        """Make the Accelerator as Trainer does; it also shards on CPUs if the arguments ask for shards."""
        super().create_accelerator_and_postprocess()
        enable_cpu_sharding(self)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as Trainer does, but make the folder first if the model is sharded."""
        # Trainer looks for the folder at once to note the best checkpoint, and shards write their first file later.
        if self.is_fsdp_enabled and output_dir:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
        super().save_model(output_dir, _internal_call)

    def finish(self) -> dict[str, Any]:
        """Remove what only training needed; return further figures for metrics.json."""
        return {}

    def total_loss(self) -> float:
        """Return the sum of the training losses of all steps so far; of the last few on this rank alone."""
        return self._total_loss_scalar + float(self._tr_loss)

    def totals(self) -> dict[str, Any]:
        """Return what Trainer does not save in a checkpoint: sums of losses, and the counts and times of training."""
        unlogged = float(self._tr_loss)
        losses = {
            "unlogged_loss": unlogged if math.isfinite(unlogged) else None,
            "logged_loss": self._total_loss_scalar,
        }
        return {**losses, "logged_at": self._globalstep_last_logged, **self.throughput.totals()}

    def go_on_from(self, totals: Mapping[str, Any]) -> None:
        """Continue from the `totals` of a checkpoint, so that log and figures cover the whole run."""
        unlogged = totals["unlogged_loss"]
        self._tr_loss += math.nan if unlogged is None else unlogged  # JSON has no NaN; the next log entry stops the run
        self._total_loss_scalar, self._globalstep_last_logged = totals["logged_loss"], int(totals["logged_at"])
        self.throughput.go_on_from(totals)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as Trainer does, but let the last entry of a resumed run cover the whole run."""
        earlier, step = self.throughput.earlier, self.state.global_step
        if "train_loss" in logs and earlier:
            seconds = earlier + logs["train_runtime"]
            texts = self.throughput.texts * self.args.world_size
            rates = {"train_steps_per_second": step / seconds, "train_samples_per_second": texts / seconds}
            logs = {**logs, **rates, "train_runtime": seconds, "train_loss": self._total_loss_scalar / step}
        super().log(logs, start_time)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Trainer checks only after a step whether training is over; a resumed run may have no step left.
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def get_train_dataloader(self) -> torch.utils.data.DataLoader[Any]:
        """Return Trainer's loader, which draws its workers' seeds from a generator of its own."""
        return _with_own_generator(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader[Any]:
        """Return Trainer's loader of all rows, which draws its workers' seeds from a generator of its own."""
        # dataloader_drop_last is for training: Trainer would drop texts from evaluation too. If ranks may have unequal
        # batches, it must stay, since they would wait for each other for ever.
        is_dropping = self.args.dataloader_drop_last
        is_even = self.args.world_size == 1 or self.accelerator.even_batches
        self.args.dataloader_drop_last = is_dropping and not is_even
        try:
            return _with_own_generator(super().get_eval_dataloader(eval_dataset))
        finally:
            self.args.dataloader_drop_last = is_dropping

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Compute loss and gradients of a batch, one micro-batch at a time; return the loss."""
        *others, last = micro_batches_of(inputs)
        losses = []
        with self._lookups(inputs):
            for micro_batch in others:
                with self.accelerator.no_sync(model):  # ranks may have unequal numbers of micro-batches
                    losses.append(super().training_step(model, micro_batch, num_items_in_batch))
            return torch.stack([*losses, super().training_step(model, last, num_items_in_batch)]).sum()

    def _lookups(self, inputs: Mapping[str, Any]) -> contextlib.AbstractContextManager[None]:
        # On a GPU a table is written in microseconds. A batch that cannot be cut may not work with this either.
        if self.args.device.type == "cpu" and MICRO_BATCHES in inputs and not self.args.torch_compile:
            return summed_by_row(self.model)
        return contextlib.nullcontext()

    def training_losses(
        self, model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (batch, classes) and the training loss of each example, shape (batch,)."""
        logits = model(**inputs_of(self.model.config, inputs)).logits
        return logits, gold_loss(logits, inputs["labels"], **self.gold_settings(logits.device))

    def gold_settings(self, device: torch.device) -> dict[str, Any]:
        """Return the arguments of `gold_loss` that the recipe sets."""
        weights = None if self.class_weights is None else torch.tensor(self.class_weights, device=device)
        return {"label_smoothing": self.args.label_smoothing_factor, "class_weights": weights}

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the mean loss of the step's examples; in evaluation the plain cross-entropy, for students too."""
        if model.training:
            self.throughput.add(inputs["attention_mask"])
            logits, losses = self.training_losses(model, inputs)
        else:
            logits = model(**inputs_of(self.model.config, inputs)).logits
            losses = gold_loss(logits, inputs["labels"])
        if num_items_in_batch is None or not model.training:
            loss = losses.mean()
        else:
            # Trainer counts labels, of which an example may have several.
            loss = losses.sum() * math.prod(inputs["labels"].shape[1:]) / num_items_in_batch
            if self.args.average_tokens_across_devices:  # the count covers all ranks, and DDP averages
                loss = loss * self.accelerator.num_processes
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as Trainer does, and time it apart from training."""
        with self.throughput.evaluating():
            return super().evaluate(*args, **kwargs)


def _with_own_generator(loader: Any) -> Any:
    """Give the loader its own generator, since a resumed run starts workers at another time, and dropout would change.

    The workers also ignore signals (see `_Unsignalled`).
    """
    for one in (loader, getattr(loader, "base_dataloader", loader)):  # accelerate wraps torch's loader
        one.generator = torch.Generator().manual_seed(0)
        if one.num_workers and not isinstance(one.worker_init_fn, _Unsignalled):
            one.worker_init_fn = _Unsignalled(one.worker_init_fn)
    return loader


class _Unsignalled:
    """A worker's first action: it leaves the signals of its process group to the process that trains.

    A signal that stops a run reaches all of its processes. If a worker died of it, the step and its checkpoint would
    be lost.
    """

    def __init__(self, then: Callable[[int], object] | None):
        self.then = then

    def __call__(self, number: int) -> None:
        if self.then:
            self.then(number)
        for name in ("SIGINT", "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        if hasattr(signal, "sigwaitinfo"):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            threading.Thread(target=_end_for_parent, daemon=True).start()


def _end_for_parent() -> None:
    # After an error, the process that trains ends its workers with the same signal.
    while True:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == os.getppid():
            os._exit(0)
