"""A model cut into shards, of which each rank keeps its own: weights, gradients and optimizer state (FSDP2)."""

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

LAUNCHED = "ACCELERATE_USE_FSDP"  # accelerate's own mark, made by its launcher and by each Accelerator that shards


def check_launch(training: Mapping[str, Any], stage: str) -> None:
    """Raise `RecipeError` where a `training` section shards and no launcher has started several processes for it.

    The same holds of the backend by which processes talk. A launch is refused too where `accelerate launch` was told to
    shard: what it was told and the recipe could differ in silence.
    """
    if os.environ.get(LAUNCHED, "false").lower() == "true":
        raise RecipeError(
            "accelerate launch: --use_fsdp is for the recipe to say",
            hint=f"accelerate launch --multi_gpu ... with {stage}.training.fsdp: true",
        )
    if training.get("fsdp") and world_size() == 1:
        raise RecipeError(
            f"{stage}.training.fsdp: shares the model among several processes, and this is one",
            hint=f"torchrun --nproc-per-node N -m distill ..., one for each GPU; or --set {stage}.training.fsdp=false",
        )
    if training.get("ddp_backend") and "WORLD_SIZE" not in os.environ:
        raise RecipeError(
            f"{stage}.training.ddp_backend: is how several processes talk, and this is one",
            hint=f"torchrun --nproc-per-node N -m distill ..., or --set {stage}.training.ddp_backend=null",
        )


def name_units(model: PreTrainedModel, arguments: TrainingArguments, stage: str) -> None:
    """Settle which modules are gathered one at a time: the recipe's, transformers' for this model, or its layers.

    Raises `RecipeError` where the recipe names what the model has not, or must where the model does not tell.
    """
    plugin, config = arguments.fsdp_plugin_args, arguments.fsdp_config
    if plugin is None or plugin["auto_wrap_policy"] == "NO_WRAP":
        return
    assert isinstance(config, dict)  # transformers has made it one
    # accelerate 1.15 makes the input embeddings a unit of their own, and fails where they lie in another one; BERT's
    # `_no_split_modules` holds one that they lie in.
    embeddings = model.get_input_embeddings()
    found = {type(module).__name__ for module in model.modules()}
    found -= {type(module).__name__ for module in model.modules() if embeddings in list(module.modules())[1:]}
    place = f"{stage}.training.fsdp_config.transformer_layer_cls_to_wrap"
    names = config.get("transformer_layer_cls_to_wrap") or sorted(found & set(model._no_split_modules or ()))
    for name in set(names) - found:
        kinds = ", ".join(sorted(kind for kind in found if kind.endswith(("Layer", "Block"))))
        raise RecipeError(f"{place}: {type(model).__name__} has no {name} beside its embeddings; it has {kinds}")
    if not names:
        try:
            names = [type(layer_list(model, layer_count(model.config))[1][0]).__name__]
        except ModelError:
            raise RecipeError(
                f"{place}: missing, and {type(model).__name__} does not tell which modules are its layers",
                hint="name their class there, or write auto_wrap_policy: NO_WRAP to gather the whole model at once",
            ) from None
    plugin["transformer_cls_names_to_wrap"] = ",".join(names)


def settle(trainer: Trainer) -> None:
    """Let a Trainer that has just made its Accelerator shard on a CPU too, and leave no trace of it to later ones.

    accelerate 1.15 passes sharding over on a CPU without a word, and trains with DDP; torch shards there as elsewhere.
    """
    os.environ.pop(LAUNCHED, None)
    if not trainer.args.fsdp or trainer.is_fsdp_enabled:
        return
    state = trainer.accelerator.state
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    if state.mixed_precision != "no":
        state.fsdp_plugin.set_mixed_precision(state.mixed_precision)
    # Of both: what the one says is copied to the other whenever anyone asks.
    state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    # Without a mesh torch takes the kind of device that it was built for.
    state.parallelism_config = ParallelismConfig(dp_shard_size=state.num_processes)
    state.device_mesh = state.parallelism_config.get_device_mesh(state.device.type)
    trainer.is_fsdp_enabled = True


def whole(model: PreTrainedModel) -> PreTrainedModel:
    """Return a sharded model with all its weights on each rank's device; any other as it is. All ranks call it."""
    if not isinstance(model, FSDPModule):
        return model
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    plain = type(model)(model.config)  # torch makes this an object of the class that was sharded
    plain.load_state_dict(weights, assign=True)
    return plain
