"""Make TrainingArguments from a recipe's `training` section: check how its fields combine, and settle the precision."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)
from transformers.optimization import get_scheduler

from distill.errors import RecipeError
from distill.machine.devices import Device, bf16_rate, describe_hardware, has_fast_bf16, refuse_fp16, training_precision
from distill.machine.ranks import world_size
from distill.recipe.schema import PRECISION, Recipe, with_precision
from distill.recipe.training_fields import BY_LENGTH, OF_WORKERS
from distill.storage.run_folder import RunFolder
from distill.training.fsdp import check_launch

log = logging.getLogger("distill")

SHARED_MEMORY = Path("/dev/shm")
# DeBERTa (v1) masks with the lowest fp32 number, which overflows under autocast to bf16 or fp16 (transformers 5.23).
ONLY_FP32 = ("deberta",)


def check_training(training: Mapping[str, Any], device: Device, stage: str) -> None:
    """Raise `RecipeError` if a `training` section does not fit the device or the way that distill was launched."""
    refuse_fp16(training, device, stage)
    check_supported(training, stage)
    check_launch(training, stage)
    if training.get("use_liger_kernel") and find_spec("liger_kernel") is None:
        raise RecipeError(f"{stage}.training.use_liger_kernel: not installed: pip install liger-kernel, or unset it")
    if training.get("fsdp") and device == "cpu" and (training.get("fsdp_config") or {}).get("cpu_offload"):
        raise RecipeError(f"{stage}.training.fsdp_config.cpu_offload: needs a GPU, and this run is on a CPU")


def check_supported(training: Mapping[str, Any], stage: str) -> None:
    """Raise `RecipeError` if a `training` section reports to a tracker that is not installed, or groups by length.

    A finished run may say so, since an earlier version did; a new one may not.
    """
    if training.get("train_sampling_strategy") == "group_by_length":
        raise RecipeError(f"{stage}.training.train_sampling_strategy: got 'group_by_length'; {BY_LENGTH}")
    named = training.get("report_to")
    names = [named] if isinstance(named, str) else named or []
    known = ("none", "all", *INTEGRATION_TO_CALLBACK)
    installed = ("none", "all", "flyte", *get_available_reporting_integrations())  # it never lists flyte
    for name in names:
        if name not in known:
            raise RecipeError(f"{stage}.training.report_to: got {name!r}, wants one of {', '.join(known)}")
        if name not in installed:
            raise RecipeError(
                f"{stage}.training.report_to: {name} is not installed: pip install {name}, or leave it out"
            )


def check_steps(arguments: TrainingArguments, rows: int, stage: str) -> None:
    """Raise `RecipeError` if incomplete batches are dropped and `rows` texts do not fill one: no step would be made."""
    batch = arguments.train_batch_size * arguments.world_size
    if arguments.dataloader_drop_last and rows < batch:
        raise RecipeError(
            f"{stage}.training.dataloader_drop_last: drops the only batch, which has {rows} of {batch} texts: "
            "leave it out, or use a smaller per_device_train_batch_size"
        )


def in_fp32(recipe: Recipe, stage: str, *architectures: str) -> Recipe:
    """Return the recipe, set to fp32 if one of the stage's `architectures` breaks in mixed precision.

    Raises `RecipeError` if the recipe asks for another precision.
    """
    found = [name for name in architectures if name in ONLY_FP32]
    if not found:
        return recipe
    training = getattr(recipe, stage).training
    for name in PRECISION:
        if training.get(name):
            raise RecipeError(f"{stage}.training.{name}: {found[0]}'s attention mask overflows in {name}: leave it out")
    log.info("%s: in fp32, because %s's attention mask overflows in any other precision", stage, found[0])
    return with_precision(recipe, stage, dict.fromkeys(PRECISION, False))


def training_arguments(
    training: Mapping[str, Any], folder: RunFolder, device: Device, *, stage: str
) -> tuple[TrainingArguments, str]:
    """Return the TrainingArguments of a `training` section and the reason for their precision.

    If a launcher started several processes, they join each other here, with the recipe's backend and timeout. Raises
    `RecipeError` as `check_training` does, and if transformers refuses a combination of valid fields.
    """
    check_training(training, device, stage)
    precision, reason = training_precision(device, dict(training))
    loader = {"dataloader_pin_memory": device == "cuda", "dataloader_num_workers": 2 if device == "cuda" else 0}
    # With the filter, Trainer replaces a loss that is NaN by the mean of earlier ones, and divergence would not show.
    fields = {**loader, **training, **precision, "logging_nan_inf_filter": False}
    if idle := [name for name in OF_WORKERS if fields.get(name) and not fields["dataloader_num_workers"]]:
        raise RecipeError(f"{stage}.training.{idle[0]}: wants dataloader_num_workers above 0")
    if training.get("fsdp") and device == "cuda":  # offloaded and saved tensors travel between CPUs, over gloo
        fields.setdefault("ddp_backend", "cuda:nccl,cpu:gloo")
    fields = copy.deepcopy(fields)  # transformers writes its defaults into nested values
    try:
        arguments = TrainingArguments(
            output_dir=str(folder.checkpoints.absolute()),  # the best checkpoint is found by its absolute path
            restore_callback_states_from_checkpoint=True,  # early stopping: how much patience is used up
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


def as_settings(arguments: TrainingArguments) -> dict[str, Any]:
    """Return the arguments as JSON, each with its own type; without tokens for the Hub."""
    return {name: value for name, value in arguments.to_dict().items() if not name.endswith("_token")}


def check_shared_memory(arguments: TrainingArguments, max_tokens: int, stage: str) -> None:
    """Raise `RecipeError` if the batches that data loader workers prefetch do not fit into shared memory.

    Containers often have little of it. Workers that run out of it are killed or hang.
    """
    workers = arguments.dataloader_num_workers
    if not workers or not SHARED_MEMORY.is_dir():
        return
    rows = max(arguments.train_batch_size, arguments.eval_batch_size)
    waiting = (arguments.dataloader_prefetch_factor or 2) + 1
    # 32 bytes a token: its id and its mask in int64, and both once more when the batch is cut into micro-batches.
    needed = workers * waiting * (rows * max_tokens * 32 + 2**18)
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < needed:
        raise RecipeError(
            f"{stage}.training.dataloader_num_workers: {workers} workers may need {needed / 1e6:.1f} MB in "
            f"{SHARED_MEMORY}, which has {free / 1e6:.1f} MB left",
            hint=f"--set {stage}.training.dataloader_num_workers=0, or give it more room (docker run --shm-size=1g)",
        )


def settle_precision(
    recipe: Recipe, stage: str, folder: RunFolder, device: Device, parent: Mapping[str, Any] | None = None
) -> tuple[Recipe, str]:
    """Return the recipe with the precision of `stage` filled in, and the reason for it.

    A precision in the recipe always wins. If the recipe has none and the run of `parent` (the manifest of the run that
    this one learns from or is compared with) trained on the same kind of device, its precision is used. Otherwise it is
    measured now (see devices.training_precision), by rank 0 for all ranks. The run's recipe.yaml keeps the result,
    because a second measurement could differ, and then so would the runs of one flow or the parts of a resumed run.
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
        log.warning("%s: training.bf16: true, but this CPU %s: without it training is faster", stage, slow)
    fields, reason = training_precision(device, training)
    if fields and world_size() > 1:  # ranks may run on different machines
        training_arguments({**training, **fields}, folder, device, stage=stage)  # here the ranks join each other
        ((fields, reason),) = broadcast_object_list([(fields, reason)])
    return with_precision(recipe, stage, fields), reason


def _is_alike(manifest: Mapping[str, Any], device: Device) -> bool:
    here, there = describe_hardware(), manifest.get("hardware")
    kind = "gpus" if device == "cuda" else "cpu"
    return manifest.get("device") == device and isinstance(there, dict) and there.get(kind) == here[kind]


def _try_out(arguments: TrainingArguments) -> None:
    """Make the optimizer, its schedule and the trackers, so that errors come before the run folder is written."""
    get_reporting_integration_callbacks(arguments.report_to)
    weight = torch.nn.Parameter(torch.zeros(8, 8))
    if arguments.optim in ("adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "adagrad", "rmsprop"):
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
        optimizer = kind([weight], **settings)
    else:  # the others need the real model, but this raises if their package is missing
        Trainer.get_optimizer_cls_and_kwargs(arguments, torch.nn.Linear(8, 8))
        optimizer = torch.optim.SGD([weight])
    get_scheduler(
        arguments.lr_scheduler_type, optimizer, num_warmup_steps=0, num_training_steps=10,
        scheduler_specific_kwargs=dict(arguments.lr_scheduler_kwargs or {}),
    )  # fmt: skip
