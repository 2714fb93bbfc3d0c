"""Sharded training (FSDP2): each rank keeps one shard of the weights, the gradients and the optimizer state."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from accelerate import ParallelismConfig, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, Trainer, TrainingArguments

from distill.errors import ModelError, RecipeError
from distill.machine.ranks import world_size
from distill.models.loading import layer_count, layer_list

LAUNCHED = "ACCELERATE_USE_FSDP"  # set by accelerate's launcher and by each Accelerator that shards


def check_launch(training: Mapping[str, Any], stage: str) -> None:
    """Raise `RecipeError` if a `training` section needs several processes and no launcher has started them.

    Sharding and a backend for communication need them. `accelerate launch --use_fsdp` is refused too, because its
    settings could silently differ from the recipe's.
    """
    if os.environ.get(LAUNCHED, "false").lower() == "true":
        raise RecipeError(
            "accelerate launch: --use_fsdp: the recipe sets sharding, not the launcher",
            hint=f"accelerate launch --multi_gpu ... with {stage}.training.fsdp: true",
        )
    if training.get("fsdp") and world_size() == 1:
        raise RecipeError(
            f"{stage}.training.fsdp: shares the model among several processes, but there is only one",
            hint=f"torchrun --nproc-per-node N -m distill ..., one for each GPU; or --set {stage}.training.fsdp=false",
        )
    if training.get("ddp_backend") and "WORLD_SIZE" not in os.environ:
        raise RecipeError(
            f"{stage}.training.ddp_backend: needs several processes, but there is only one",
            hint=f"torchrun --nproc-per-node N -m distill ..., or --set {stage}.training.ddp_backend=null",
        )


def set_wrapped_layers(model: PreTrainedModel, arguments: TrainingArguments, stage: str) -> None:
    """Set which modules FSDP gathers one at a time: those of the recipe, else transformers' choice, else the layers.

    Raises `RecipeError` if the recipe names a module that the model lacks, or if neither source has a name.
    """
    plugin, config = arguments.fsdp_plugin_args, arguments.fsdp_config
    if plugin is None or plugin["auto_wrap_policy"] == "NO_WRAP":
        return
    assert isinstance(config, dict)  # transformers has made it one
    # accelerate 1.15 makes the input embeddings a unit of their own, and fails if another unit contains them. BERT's
    # `_no_split_modules` has such a unit.
    embeddings = model.get_input_embeddings()
    found = {type(module).__name__ for module in model.modules()}
    found -= {type(module).__name__ for module in model.modules() if embeddings in list(module.modules())[1:]}
    place = f"{stage}.training.fsdp_config.transformer_layer_cls_to_wrap"
    names = config.get("transformer_layer_cls_to_wrap") or sorted(found & set(model._no_split_modules or ()))
    for name in set(names) - found:
        kinds = ", ".join(sorted(kind for kind in found if kind.endswith(("Layer", "Block"))))
        raise RecipeError(f"{place}: {type(model).__name__} has no {name}, or it holds the embeddings; it has {kinds}")
    if not names:
        try:
            names = [type(layer_list(model, layer_count(model.config))[1][0]).__name__]
        except ModelError:
            raise RecipeError(
                f"{place}: missing, and the layers of {type(model).__name__} are not known",
                hint="name their class there, or set auto_wrap_policy: NO_WRAP to gather the whole model at once",
            ) from None
    plugin["transformer_cls_names_to_wrap"] = ",".join(names)


def enable_cpu_sharding(trainer: Trainer) -> None:
    """Let a Trainer that has just made its Accelerator shard on CPUs too; clear `LAUNCHED` for later Trainers.

    On CPUs accelerate 1.15 silently ignores sharding and trains with DDP, although torch can shard there.
    """
    os.environ.pop(LAUNCHED, None)
    if not trainer.args.fsdp or trainer.is_fsdp_enabled:
        return
    state = trainer.accelerator.state
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    if state.mixed_precision != "no":
        state.fsdp_plugin.set_mixed_precision(state.mixed_precision)
    # Both: accelerate copies the one to the other on every access.
    state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    # Without a mesh, torch takes the kind of device that it was built for.
    state.parallelism_config = ParallelismConfig(dp_shard_size=state.num_processes)
    state.device_mesh = state.parallelism_config.get_device_mesh(state.device.type)
    trainer.is_fsdp_enabled = True


def gather_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Return a sharded model with all its weights on each rank's device; all ranks must call this.

    A model that is not sharded comes back as it is.
    """
    if not isinstance(model, FSDPModule):
        return model
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    plain = type(model)(model.config)  # sharding derives a class; this makes an object of the original one
    plain.load_state_dict(weights, assign=True)
    return plain
