"""A training from its arguments to its figures: what a Trainer is made with, watched by and leaves."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    TensorBoardCallback,
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)
from transformers.optimization import get_scheduler
from transformers.trainer_callback import PrinterCallback

from distill.errors import FolderError, Interrupted, RecipeError, TrainingError, one_line
from distill.machine.devices import (
    Device,
    GpuWatch,
    bf16_rate,
    describe_hardware,
    has_fast_bf16,
    peak_memory_bytes,
    refuse_fp16,
    training_precision,
)
from distill.machine.ranks import rank, world_size
from distill.measuring.metrics import ClassificationMetrics
from distill.measuring.training_log import early_stop, warnings_of
from distill.models.first_token import LastLayer, first_token_only, last_layer
from distill.recipe.schema import PRECISION, Recipe, with_precision
from distill.storage.files import room_for
from distill.storage.run_folder import RunFolder
from distill.training.callbacks import (
    KeepTotals,
    LogFile,
    ProgressLine,
    SealCheckpoints,
    StopOnDivergence,
    StopOnSignal,
)
from distill.training.micro_batches import PART_TOKENS, Collator
from distill.training.shards import check_launch
from distill.training.throughput import Throughput, forward_flops, peak_flops
from distill.training.trainer import ClassificationTrainer

log = logging.getLogger("distill")

SHARED_MEMORY = Path("/dev/shm")
# DeBERTa (v1) masks with fp32's least number, which autocast's bf16 and fp16 cannot hold; transformers 5.23.
ONLY_FP32 = ("deberta",)
LONG_SECONDS = 10.0  # of training, before whose end other work on the machine may have come or gone
_peak_once = functools.cache(peak_flops)  # a search begins many trainings


def check_training(training: Mapping[str, Any], device: Device, stage: str) -> None:
    """Raise `RecipeError` if a `training` section does not go with the device or with how distill was started."""
    refuse_fp16(training, device, stage)
    check_trackers(training, stage)
    check_launch(training, stage)
    if training.get("fsdp") and device == "cpu" and (training.get("fsdp_config") or {}).get("cpu_offload"):
        raise RecipeError(
            f"{stage}.training.fsdp_config.cpu_offload: moves what a GPU holds to the CPU, and this is one"
        )


def check_trackers(training: Mapping[str, Any], stage: str) -> None:
    """Raise `RecipeError` if a `training` section reports to a tracker that is not installed."""
    named = training.get("report_to")
    names = [named] if isinstance(named, str) else named or []
    known = ("none", "all", *INTEGRATION_TO_CALLBACK)
    installed = ("none", "all", "flyte", *get_available_reporting_integrations())  # which does not look for flyte
    for name in names:
        if name not in known:
            raise RecipeError(f"{stage}.training.report_to: got {name!r}, wants one of {', '.join(known)}")
        if name not in installed:
            raise RecipeError(
                f"{stage}.training.report_to: {name} is not installed: pip install {name}, or leave it out"
            )


def check_steps(arguments: TrainingArguments, rows: int, stage: str) -> None:
    """Raise `RecipeError` if not one batch of `rows` training texts is full and others are dropped: no step is made."""
    batch = arguments.train_batch_size * arguments.world_size
    if arguments.dataloader_drop_last and rows < batch:
        raise RecipeError(
            f"{stage}.training.dataloader_drop_last: drops the only batch, of {rows} texts where {batch} make one: "
            "leave it out, or a smaller per_device_train_batch_size"
        )


def in_fp32(recipe: Recipe, stage: str, *architectures: str) -> Recipe:
    """Return the recipe with fp32 settled for a stage that runs an architecture which mixed precision breaks.

    Raises `RecipeError` if the recipe asks for another precision.
    """
    found = [name for name in architectures if name in ONLY_FP32]
    if not found:
        return recipe
    training = getattr(recipe, stage).training
    for name in PRECISION:
        if training.get(name):
            problem = f"{stage}.training.{name}: {found[0]}'s attention mask overflows in it: leave it out, for fp32"
            raise RecipeError(problem)
    log.info("%s: in fp32, since %s's attention mask overflows in any other precision", stage, found[0])
    return with_precision(recipe, stage, dict.fromkeys(PRECISION, False))


def training_arguments(
    training: Mapping[str, Any], folder: RunFolder, device: Device, *, stage: str
) -> tuple[TrainingArguments, str]:
    """Return transformers' arguments for a `training` section and the reason for the precision they train in.

    Under a launcher this is where a process joins the others, with the recipe's backend and patience. Raises
    `RecipeError` where transformers refuses a combination of fields that are each fine, and see `check_training`.
    """
    check_training(training, device, stage)
    precision, reason = training_precision(device, dict(training))
    # Trainer would log the mean of the steps before in place of a loss that is not a number.
    loader = {"dataloader_pin_memory": device == "cuda", "dataloader_num_workers": 2 if device == "cuda" else 0}
    fields = {**loader, **training, **precision, "logging_nan_inf_filter": False}
    if training.get("fsdp") and device == "cuda":  # what is offloaded or saved travels between CPUs
        fields.setdefault("ddp_backend", "cuda:nccl,cpu:gloo")
    fields = copy.deepcopy(fields)  # transformers writes its defaults into what it is given
    try:
        arguments = TrainingArguments(
            output_dir=str(folder.checkpoints.absolute()),  # it finds the way to the best checkpoint after a resume
            restore_callback_states_from_checkpoint=True,  # the patience already used up
            use_cpu=device == "cpu",
            remove_unused_columns=False,
            disable_tqdm=True,
            label_names=["labels"],
            **fields,
        )
        _try_out(arguments)
    except (ValueError, TypeError, ImportError, RuntimeError, KeyError, AttributeError) as error:
        raise RecipeError(f"{stage}.training: {' '.join(str(error).split())[:300]}") from error
    return arguments, reason


def check_shared_memory(arguments: TrainingArguments, max_tokens: int, stage: str) -> None:
    """Raise `RecipeError` if the batches that loader workers hold ready do not fit into shared memory.

    Without room there, as in a container, workers are killed or wait for ever.
    """
    workers = arguments.dataloader_num_workers
    if not workers or not SHARED_MEMORY.is_dir():
        return
    rows = max(arguments.train_batch_size, arguments.eval_batch_size)
    waiting = (arguments.dataloader_prefetch_factor or 2) + 1
    # Of a token its id and its mask, int64 each, and both again as they are cut into parts.
    needed = workers * waiting * (rows * max_tokens * 32 + 2**18)
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < needed:
        raise RecipeError(
            f"{stage}.training.dataloader_num_workers: {workers} workers pass batches on through {SHARED_MEMORY}, "
            f"which has {free / 1e6:.1f} MB left of the {needed / 1e6:.1f} MB that they may need",
            hint=f"--set {stage}.training.dataloader_num_workers=0, or more room (docker run --shm-size=1g)",
        )


def settle_precision(
    recipe: Recipe, stage: str, folder: RunFolder, device: Device, parent: Mapping[str, Any] | None = None
) -> tuple[Recipe, str]:
    """Return the recipe with the precision of a stage settled, and the reason.

    The recipe's own word is the last; what it leaves open is as in `parent`, the manifest of the run that this one
    learns from, if that was on such a device; else it is decided now (see devices.training_precision). Once it stands
    in the run's recipe.yaml it stays: a stopwatch reads otherwise from one hour to the next, and runs of one flow, or
    the halves of a resumed one, would differ in silence. Of several ranks the first decides for all.
    """
    training = getattr(recipe, stage).training
    if parent and not any(name in training for name in PRECISION) and _is_alike(parent, device):
        before = parent.get("training_arguments")
        fields = {name: isinstance(before, dict) and bool(before.get(name)) for name in PRECISION}
        name = next((name for name in PRECISION if fields[name]), "fp32")
        return with_precision(recipe, stage, fields), f"{name}, as in the run that it learns from"
    if device == "cpu" and training.get("bf16") and not has_fast_bf16(device):
        rate = bf16_rate()
        slow = f"multiplies in it at {rate:.2f} times the rate of fp32" if rate else "has neither AVX512-BF16 nor AMX"
        log.warning("%s: training.bf16: true, but this CPU %s: without it the training is faster", stage, slow)
    fields, reason = training_precision(device, training)
    if fields and world_size() > 1:  # ranks may sit on machines of two kinds
        training_arguments({**training, **fields}, folder, device, stage=stage)  # here they join each other
        ((fields, reason),) = broadcast_object_list([(fields, reason)])
    return with_precision(recipe, stage, fields), reason


def _is_alike(manifest: Mapping[str, Any], device: Device) -> bool:
    here, there = describe_hardware(), manifest.get("hardware")
    kind = "gpus" if device == "cuda" else "cpu"
    return manifest.get("device") == device and isinstance(there, dict) and there.get(kind) == here[kind]


def _try_out(arguments: TrainingArguments) -> None:
    """Make the optimizer, its schedule and the trackers, as Trainer does once the run folder is written."""
    get_reporting_integration_callbacks(arguments.report_to)
    weight = torch.nn.Parameter(torch.zeros(8, 8))
    if arguments.optim in ("adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "adagrad", "rmsprop"):
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
        optimizer = kind([weight], **settings)
    else:  # others want the model itself; what they lack is said here all the same
        Trainer.get_optimizer_cls_and_kwargs(arguments, torch.nn.Linear(8, 8))
        optimizer = torch.optim.SGD([weight])
    get_scheduler(
        arguments.lr_scheduler_type, optimizer, num_warmup_steps=0, num_training_steps=10,
        scheduler_specific_kwargs=dict(arguments.lr_scheduler_kwargs or {}),
    )  # fmt: skip


def make_trainer(
    trainer_class: type[ClassificationTrainer],
    tokenizer: PreTrainedTokenizerBase,
    train_rows: Dataset,
    validation_rows: Dataset,
    arguments: TrainingArguments,
    folder: RunFolder,
    *,
    padding: str,
    max_tokens: int,
    title: str,
    callbacks: Sequence[TrainerCallback] = (),
    **settings: Any,
) -> ClassificationTrainer:
    """Return a Trainer that is judged on validation and stops where losses, logits or weights are not numbers.

    `settings` are its model, or what makes one, and what `trainer_class` wants beside Trainer's own.
    """
    divergence = StopOnDivergence(folder, title)

    def validation_figures(prediction: EvalPrediction) -> dict[str, Any]:
        logits = np.asarray(prediction.predictions)
        if not np.isfinite(logits).all():
            divergence.stop("logits on validation are not finite", arguments, trainer.state)
        return _validation_figures(logits, prediction.label_ids)

    trainer = trainer_class(
        args=arguments,
        train_dataset=train_rows,
        eval_dataset=validation_rows.sort("length"),  # neighbours of like length need little padding
        processing_class=tokenizer,
        data_collator=Collator(
            tokenizer, padding, max_tokens, _part_tokens(arguments, padding, tokenizer.padding_side)
        ),
        compute_metrics=validation_figures,
        callbacks=[divergence, *callbacks],
        **settings,
    )
    trainer.remove_callback(PrinterCallback)  # prints dictionaries to stdout
    return trainer


def _part_tokens(arguments: TrainingArguments, padding: str, side: str) -> int | None:
    # Who pads to one length wants one shape, and padding on the left cannot be cut (see parts_of); ranks with shards
    # gather each layer together, so they must compute as many parts; DataParallel cuts batches by itself.
    if padding == "max_length" or side != "right" or arguments.fsdp or arguments.n_gpu > 1:
        return None
    if any(word in arguments.optim for word in ("layerwise", "lomo")):  # they take a step in each backward pass
        return None
    return PART_TOKENS["cuda" if arguments.device.type == "cuda" else "cpu"]


def watch(trainer: ClassificationTrainer, title: str) -> ProgressLine:
    """Return a line on stderr that the Trainer will move; whoever runs it closes the line."""
    line = ProgressLine(title, lambda: trainer.throughput.shown())
    trainer.add_callback(line)
    return line


def throughput_of(model: PreTrainedModel, trainer: ClassificationTrainer, device: Device) -> Throughput:
    """Return a count of what `trainer` will do with `model`, from none, with what that costs and the device can do."""
    return Throughput(device, forward_flops(model, first_token=_narrows(trainer)), _peak(trainer, device, _peak_once))


def _peak(
    trainer: ClassificationTrainer, device: Device, measure: Callable[[Device, torch.dtype], float] = peak_flops
) -> float:
    arguments = trainer.args
    dtype = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else torch.float32
    return measure(device, dtype) * max(1, arguments.n_gpu)  # DataParallel computes on several


@contextlib.contextmanager
def narrowed(trainer: ClassificationTrainer, layer: LastLayer | None) -> Iterator[None]:
    """Within the block, the model's last layer works on the first token alone, where nothing reads the others."""
    with first_token_only(layer if _narrows(trainer) else None):
        yield


def _narrows(trainer: ClassificationTrainer) -> bool:
    # DataParallel, which Trainer takes for several GPUs in one process, copies what this changes to other devices.
    return not trainer.reads_all_tokens and trainer.args.n_gpu <= 1


def train(
    trainer_class: type[ClassificationTrainer],
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
    **loss_settings: Any,
) -> dict[str, Any]:
    """Train `model` in place, ending with the checkpoint that did best on validation; return the training figures.

    Rows are tokenised (see data.tokenise). Checkpoints and the log go to `folder`; `checkpoint` is one to go on
    from, whose times and counts are added to. Raises `Interrupted` on SIGINT or SIGTERM, after the running
    step and a checkpoint, and `TrainingError` where the loss diverges.
    """
    callbacks: list[TrainerCallback] = [LogFile(folder.metrics_log)]
    kept, arguments.save_total_limit = arguments.save_total_limit, None
    totals = KeepTotals(checkpoint)
    callbacks += [totals, SealCheckpoints(kept, folder, checkpoint)]
    layer = last_layer(model)
    if layer is not None and arguments.ddp_find_unused_parameters is None:
        arguments.ddp_find_unused_parameters = False  # these architectures use them all; looking costs time
    trackers = list(arguments.report_to or ())  # transformers makes a list of whatever was given
    arguments.report_to = [name for name in trackers if name != "tensorboard"]
    if "tensorboard" in trackers and rank() == 0:
        from torch.utils.tensorboard import SummaryWriter

        callbacks.append(TensorBoardCallback(SummaryWriter(str(folder.tensorboard))))
    if early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience))
    trainer = make_trainer(
        trainer_class, tokenizer, train_rows, validation_rows, arguments, folder, padding=padding,
        max_tokens=max_tokens, title=title, callbacks=callbacks, model=model, **loss_settings,
    )  # fmt: skip
    trainer.throughput = throughput_of(model, trainer, device)
    totals.trainer = trainer
    line = watch(trainer, title)
    gpu, stop = GpuWatch(device), StopOnSignal(trainer)
    try:
        with stop, narrowed(trainer, layer), room_for(folder.path), gpu:
            result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        if stop.signal_number is None:
            problem = f"at step {trainer.state.global_step} a worker of the loader was killed: {one_line(error)}"
            stage = "teacher" if title == "teacher" else "student"
            hint = f"is there enough memory? --resume --set {stage}.training.dataloader_num_workers=0"
            raise TrainingError(problem, hint=hint) from None
        # A worker that was just being started had no time to leave the signal to us.
        where = f"stopped at step {trainer.state.global_step}, and the loader's workers with it"
        raise Interrupted(stop.signal_number, f"{where}; --resume goes on from the last checkpoint") from None
    except pickle.UnpicklingError as error:  # torch reads optimizer and random state as tensors alone
        if checkpoint is None:
            raise
        problem = f"{checkpoint}: holds more than tensors, and was not run"
        raise FolderError(problem, hint="delete it and --resume, or --overwrite to restart") from error
    finally:
        line.close()
    arguments.save_total_limit = kept
    seconds = trainer.throughput.earlier + result.metrics["train_runtime"]
    if seconds > LONG_SECONDS:
        trainer.throughput.peak = max(trainer.throughput.peak, _peak(trainer, device))
    counts = torch.tensor(trainer.throughput.counts(), device=arguments.device)
    total = trainer.accelerator.reduce(counts, "sum").tolist()
    best = Path(found).name if (found := trainer.state.best_model_checkpoint) else None
    kept = best if arguments.load_best_model_at_end else None
    return {
        "seconds": seconds,
        **trainer.throughput.figures(seconds, total, arguments.world_size),
        **gpu.figures(),
        "peak_memory_bytes": peak_memory_bytes(device),
        "steps": trainer.state.global_step,
        "planned_steps": trainer.state.max_steps,
        "steps_per_epoch": trainer.state.global_step / trainer.state.epoch if trainer.state.epoch else None,
        "best_checkpoint": best,
        "selected_by": arguments.metric_for_best_model,
        "selected_at": trainer.state.best_metric,
        "stopped_early": early_stop(trainer.state.global_step, trainer.state.max_steps, trainer.state.epoch, kept),
        "warnings": warnings_of(trainer.state.log_history, loss_is_scheduled=trainer.loss_is_scheduled),
        **trainer.finish(),
    }


def _validation_figures(logits: np.ndarray, gold_labels: Any) -> dict[str, Any]:
    metric = ClassificationMetrics(keep_in_memory=True)
    values: Any = metric.compute(predictions=logits.astype(np.float32), references=gold_labels)
    return {name: value for name, value in values.items() if value is not None}
