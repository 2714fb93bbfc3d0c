"""The training loop: make a Trainer with its callbacks, run it, and return the figures of the training."""

from __future__ import annotations

import contextlib
import functools
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
)
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback

from distill.errors import FolderError, Interrupted, TrainingError, one_line
from distill.machine.devices import Device, GpuWatch, peak_memory_bytes
from distill.machine.ranks import rank
from distill.measuring.metrics import validation_figures
from distill.measuring.training_log import early_stop, warnings_of
from distill.models.config import NGRAMS, is_ngrams
from distill.models.first_token import first_token_only, last_layer
from distill.models.unfused_attention import unfused_attention
from distill.storage.files import naming_full_disk
from distill.storage.run_folder import RunFolder
from distill.training.callbacks import (
    KeepTotals,
    LogFile,
    ProgressLine,
    SealCheckpoints,
    StopOnDivergence,
    StopOnSignal,
)
from distill.training.dropout import fast_dropout
from distill.training.micro_batches import MICRO_BATCH_LIMITS, NGRAM_LIMITS, Collator, Limits
from distill.training.throughput import Throughput, forward_flops, peak_flops
from distill.training.trainer import ClassificationTrainer

Made = TypeVar("Made", bound=ClassificationTrainer)
LONG_SECONDS = 10.0  # in a longer training, other work on the machine may have begun or ended meanwhile
_peak_once = functools.cache(peak_flops)  # a sweep trains many times


def make_trainer(
    trainer_class: Callable[..., Made],
    tokenizer: PreTrainedTokenizerBase,
    train_rows: Dataset,
    validation_rows: Dataset,
    arguments: TrainingArguments,
    folder: RunFolder,
    *,
    padding: str,
    max_tokens: int,
    stage: str,
    model_type: str,
    callbacks: Sequence[TrainerCallback] = (),
    model: PreTrainedModel | None = None,
    model_init: Callable[[Any], PreTrainedModel] | None = None,
) -> Made:
    """Return a Trainer that evaluates on validation and stops if losses, logits or weights are not finite.

    It trains `model`, or the model that `model_init` returns for a trial of a sweep, of architecture `model_type`.
    """
    divergence = StopOnDivergence(folder, stage)

    def figures_of(prediction: EvalPrediction) -> dict[str, Any]:
        logits = np.asarray(prediction.predictions)
        if not np.isfinite(logits).all():
            divergence.stop("logits on validation are not finite", arguments, trainer.state)
        return validation_figures(logits, np.asarray(prediction.label_ids))

    trainer = trainer_class(
        args=arguments,
        train_dataset=train_rows,
        eval_dataset=validation_rows.sort("length"),  # texts of similar length need little padding
        processing_class=tokenizer,
        data_collator=Collator(tokenizer, padding, max_tokens, _limits(model_type, arguments, padding)),
        compute_metrics=figures_of,
        callbacks=[divergence, *callbacks],
        model=model,
        model_init=model_init,
    )
    trainer.remove_callback(PrinterCallback)  # prints dictionaries to stdout
    return trainer


def _limits(model_type: str, arguments: TrainingArguments, padding: str) -> Limits | None:
    # "max_length" asks for batches of one shape. Ranks with shards gather each layer together, so all need the same
    # number of parts. DataParallel cuts batches itself.
    if padding == "max_length" or arguments.fsdp or arguments.n_gpu > 1:
        return None
    if any(word in arguments.optim for word in ("layerwise", "lomo")):  # they take a step in each backward pass
        return None
    if model_type == NGRAMS:
        return NGRAM_LIMITS
    return MICRO_BATCH_LIMITS["cuda" if arguments.device.type == "cuda" else "cpu"]


def watch(trainer: ClassificationTrainer, title: str) -> ProgressLine:
    """Give the Trainer a progress line on stderr and return it; the caller closes it."""
    line = ProgressLine(title, lambda: trainer.throughput.shown(), trainer.total_loss)
    trainer.add_callback(line)
    return line


def throughput_of(model: PreTrainedModel, trainer: ClassificationTrainer, device: Device) -> Throughput:
    """Return a counter for the training of `model`, with the operations of a text and the peak of the device."""
    # An n-gram model looks rows up and multiplies next to nothing, so a share of the peak would say nothing.
    flops = None if is_ngrams(model.config) else forward_flops(model, first_token=_reads_first_token_only(trainer))
    return Throughput(device, flops, _peak(trainer, device, _peak_once))


def _peak(
    trainer: ClassificationTrainer, device: Device, measure: Callable[[Device, torch.dtype], float] = peak_flops
) -> float:
    arguments = trainer.args
    dtype = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else torch.float32
    return measure(device, dtype) * max(1, arguments.n_gpu)  # DataParallel uses several GPUs


@contextlib.contextmanager
def shortcuts(trainer: ClassificationTrainer, model: PreTrainedModel) -> Iterator[None]:
    """Within the block, `model` trains faster; what it computes stays the same except for rounding and random numbers.

    Its last layer computes only the first token, if nothing reads the other tokens. On a CPU, dropout is faster, and in
    bf16 attention too.
    """
    arguments = trainer.args
    plain = arguments.device.type == "cpu" and not arguments.torch_compile
    with (
        unfused_attention(model) if plain and arguments.bf16 else contextlib.nullcontext(),
        fast_dropout(model) if plain else contextlib.nullcontext(),
        first_token_only(last_layer(model) if _reads_first_token_only(trainer) else None),
    ):
        yield


def _reads_first_token_only(trainer: ClassificationTrainer) -> bool:
    # With several GPUs in one process Trainer uses DataParallel, which would copy the changed layer to other devices.
    return not trainer.reads_all_tokens and trainer.args.n_gpu <= 1


def train(
    trainer_class: Callable[..., ClassificationTrainer],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train_rows: Dataset,
    validation_rows: Dataset,
    arguments: TrainingArguments,
    folder: RunFolder,
    *,
    padding: str,
    max_tokens: int,
    device: Device,
    early_stopping_patience: int | None,
    checkpoint: Path | None,
    title: str,
) -> dict[str, Any]:
    """Train `model` in place, load the checkpoint that is best on validation, and return the training figures.

    Rows are tokenized (see tokens.tokenise). Checkpoints and the log go to `folder`. Training resumes from
    `checkpoint`, if there is one, and the figures include the time before it. Raises `Interrupted` on SIGINT or
    SIGTERM, after the current step and a checkpoint, and `TrainingError` if the loss diverges.
    """
    stage = "teacher" if title == "teacher" else "student"  # whose settings a control uses
    limit, arguments.save_total_limit = arguments.save_total_limit, None  # SealCheckpoints deletes in Trainer's place
    totals = KeepTotals(checkpoint)
    callbacks: list[TrainerCallback] = [LogFile(folder.metrics_log), totals, SealCheckpoints(limit, folder, checkpoint)]
    if last_layer(model) is not None and arguments.ddp_find_unused_parameters is None:
        arguments.ddp_find_unused_parameters = False  # these architectures use all; the search costs time
    trackers = list(arguments.report_to or ())  # transformers has made it a list
    arguments.report_to = [name for name in trackers if name != "tensorboard"]
    if "tensorboard" in trackers and rank() == 0:
        from torch.utils.tensorboard import SummaryWriter

        callbacks.append(TensorBoardCallback(SummaryWriter(str(folder.tensorboard))))
    if early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience))
    trainer = make_trainer(
        trainer_class, tokenizer, train_rows, validation_rows, arguments, folder, padding=padding,
        max_tokens=max_tokens, stage=stage, model_type=model.config.model_type, callbacks=callbacks, model=model,
    )  # fmt: skip
    trainer.throughput = throughput_of(model, trainer, device)
    totals.trainer = trainer
    line = watch(trainer, title)
    gpu, stop = GpuWatch(device), StopOnSignal(trainer)
    try:
        with stop, shortcuts(trainer, model), naming_full_disk(folder.path), gpu:
            result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        if stop.signal_number is None:
            problem = f"at step {trainer.state.global_step} a worker of the loader was killed: {one_line(error)}"
            hint = f"is there enough memory? --resume --set {stage}.training.dataloader_num_workers=0"
            raise TrainingError(problem, hint=hint) from None
        # The signal also killed a worker that was still starting, and so did not ignore signals yet.
        where = f"stopped at step {trainer.state.global_step}, and the loader's workers with it"
        raise Interrupted(stop.signal_number, f"{where}; --resume goes on from the last checkpoint") from None
    except pickle.UnpicklingError as error:  # torch loads optimizer and random state with weights_only
        if checkpoint is None:
            raise
        problem = f"{checkpoint}: holds more than tensors, and was not run"
        raise FolderError(problem, hint="delete it and --resume, or --overwrite to restart") from error
    finally:
        line.close()
    arguments.save_total_limit = limit
    for name in ("forward", "_original_forward"):  # accelerate leaves its autocast here: the model would answer in bf16
        vars(model).pop(name, None)
    seconds = trainer.throughput.earlier + result.metrics["train_runtime"]
    if seconds > LONG_SECONDS:
        trainer.throughput.peak = max(trainer.throughput.peak, _peak(trainer, device))
    counts = torch.tensor(trainer.throughput.counts(), device=arguments.device)
    total = trainer.accelerator.reduce(counts, "sum").tolist()
    best = trainer.state.best_model_checkpoint if arguments.load_best_model_at_end else None
    selected = Path(best).name if best else None  # else the last step's weights were kept
    return {
        "seconds": seconds,
        **trainer.throughput.figures(seconds, total, arguments.world_size),
        **gpu.figures(),
        "peak_memory_bytes": peak_memory_bytes(device),
        "steps": trainer.state.global_step,
        "planned_steps": trainer.state.max_steps,
        "steps_per_epoch": trainer.state.global_step / trainer.state.epoch if trainer.state.epoch else None,
        "best_checkpoint": selected,
        "selected_by": arguments.metric_for_best_model if selected else None,
        "selected_at": trainer.state.best_metric if selected else None,
        "stopped_early": early_stop(trainer.state.global_step, trainer.state.max_steps, trainer.state.epoch, selected),
        "warnings": warnings_of(trainer.state.log_history, loss_is_scheduled=trainer.loss_is_scheduled),
        **trainer.finish(),
    }
