"""The `training:` section of a recipe: any field of the installed transformers' TrainingArguments, by its own name."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import json
import math
import typing
from collections.abc import Iterator, Mapping
from typing import Any

# Names that tutorials for transformers 4 still use, and what to write in transformers 5 instead.
# Source: the migration guide of transformers 5 and the deprecations of 4.41 to 4.57.
RENAMED = {
    "evaluation_strategy": "renamed eval_strategy in transformers 4.46",
    "group_by_length": "gone in transformers 5; write train_sampling_strategy: group_by_length",
    "warmup_ratio": "gone in transformers 5; warmup_steps takes a fraction below 1",
    "logging_dir": "gone in transformers 5; TensorBoard's files go to OUTPUT/tensorboard",
    "no_cuda": "gone in transformers 5; use --device cpu",
    "overwrite_output_dir": "gone in transformers 5; use --overwrite",
    "save_safetensors": "gone in transformers 5, which always saves safetensors",
    "fp16_backend": "gone in transformers 5; write fp16: true",
    "fp16_opt_level": "gone in transformers 5; write fp16: true",
    "half_precision_backend": "gone in transformers 5; write fp16: true or bf16: true",
    "adafactor": "gone in transformers 5; write optim: adafactor",
    "split_batches": "gone in transformers 5; write accelerator_config: {split_batches: true}",
    "dispatch_batches": "gone in transformers 5; write accelerator_config: {dispatch_batches: true}",
    "include_inputs_for_metrics": "gone in transformers 5; distill computes its own metrics",
    "use_ipex": "gone in transformers 5",
    "torchdynamo": "gone in transformers 5; write torch_compile: true",
    "use_legacy_prediction_loop": "gone in transformers 5",
    "per_gpu_train_batch_size": "renamed per_device_train_batch_size",
    "per_gpu_eval_batch_size": "renamed per_device_eval_batch_size",
}

# Fields that distill decides itself, and where a user says the same thing instead.
OWNED = {
    "output_dir": "set by distill; write output: beside training:",
    "resume_from_checkpoint": "set by distill; use --resume",
    "use_cpu": "set by distill; use --device cpu",
    "remove_unused_columns": "set by distill, which prepares the columns itself",
    "label_names": "set by distill; class names belong in data.label_names",
    "length_column_name": "set by distill, which writes the lengths itself",
    "disable_tqdm": "set by distill, which shows its own progress",
    "prediction_loss_only": "set by distill, which needs the logits for its metrics",
    "include_for_metrics": "set by distill, which computes its own metrics",
    "batch_eval_metrics": "set by distill, which computes its metrics over the whole split",
    "logging_nan_inf_filter": "set by distill, which stops where a loss is not a number",
    "do_train": "not a setting here; each command trains, evaluates or predicts",
    "do_eval": "not a setting here; each command trains, evaluates or predicts",
    "do_predict": "not a setting here; each command trains, evaluates or predicts",
    "deepspeed": "not supported; fsdp: true shares a model among several ranks",
    "local_rank": "set by the launcher, not by hand",
    "push_to_hub": "not supported; use --push-to-hub NAME",
    "hub_token": "not supported; a token must not stand in a recipe",
    "hub_model_id": "not supported; use --push-to-hub NAME",
    "hub_strategy": "not supported; use --push-to-hub NAME",
    "hub_private_repo": "not supported; use --push-to-hub NAME",
    "hub_always_push": "not supported; use --push-to-hub NAME",
    "hub_revision": "not supported; use --push-to-hub NAME",
}


# What a number may be: the fields that transformers takes as they are, and fails on later or not at all.
ABOVE_ZERO = (
    "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
    "adam_epsilon", "eval_steps", "save_steps", "logging_steps",
)  # fmt: skip
NOT_NEGATIVE = (
    "learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "seed", "data_seed", "dataloader_num_workers",
    "eval_delay", "save_total_limit",
)  # fmt: skip
SHARES = ("label_smoothing_factor", "adam_beta1", "adam_beta2")  # from 0 to below 1

# The fields that `distill sweep` may search over: what is learned depends on them, and Trainer reads them as it begins
# to train. Not a seed, which would be choosing luck, nor what says when and by what a model is judged.
SWEEPABLE = (
    "learning_rate", "weight_decay", "num_train_epochs", "max_steps", "per_device_train_batch_size",
    "gradient_accumulation_steps", "warmup_steps", "lr_scheduler_type", "lr_scheduler_kwargs", "optim", "optim_args",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "label_smoothing_factor", "train_sampling_strategy",
)  # fmt: skip

# The keys of `fsdp_config` and what each may be; those of transformers that are not here, and why.
FSDP_CONFIG: dict[str, tuple[Any, ...]] = {
    "version": (2,),
    "reshard_after_forward": (True, False),
    "cpu_offload": (True, False),
    "state_dict_type": ("FULL_STATE_DICT", "SHARDED_STATE_DICT"),
    "auto_wrap_policy": ("TRANSFORMER_BASED_WRAP", "NO_WRAP"),
    "transformer_layer_cls_to_wrap": (),  # names of classes
}
NOT_IN_FSDP_CONFIG = {
    # accelerate 1.15: checkpoint_wrapper(layer, preserve_rng_state=False)
    "activation_checkpointing": "draws other dropout when it computes anew; write it beside fsdp, not in its config",
    "cpu_ram_efficient_loading": "not supported; each rank reads the model",
    "min_num_params": "not supported: FSDP2 refuses the lists of layers that a wrap by size would take",
}

LOGGING_STEPS = 50
# What an evaluation gives: the names that metric_for_best_model may have.
HIGHER_IS_BETTER = ("accuracy", "macro_f1", "roc_auc")
LOWER_IS_BETTER = ("loss", "log_loss", "ece", "brier")


def with_defaults(given: Mapping[str, Any], *, seed: int) -> dict[str, Any]:
    """Return `given` over distill's defaults: evaluate and save in step, keep two checkpoints, end with the best one.

    A checkpoint can only be chosen where there is an evaluation, so saving follows evaluating, and with
    `eval_strategy: "no"` the last state is kept.
    """
    evaluates = given.get("eval_strategy", "epoch")
    defaults: dict[str, Any] = {
        "seed": seed,
        "eval_strategy": evaluates,
        "save_strategy": evaluates if evaluates != "no" else "epoch",
        "save_total_limit": 2,
        "per_device_eval_batch_size": 32,
        "logging_steps": LOGGING_STEPS,
        "report_to": "none",
    }
    if evaluates == "steps":
        defaults["eval_steps"] = given.get("eval_steps", given.get("logging_steps", defaults["logging_steps"]))
        defaults["save_steps"] = defaults["eval_steps"]
    if evaluates != "no":
        metric = given.get("metric_for_best_model", "accuracy")
        defaults |= {"load_best_model_at_end": True, "metric_for_best_model": metric}
        defaults["greater_is_better"] = str(metric).removeprefix("eval_") not in LOWER_IS_BETTER
    return defaults | dict(given)


def problems(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield `(field, what is wrong with it)` for every mistake in a `training:` section.

    Imports transformers, and with it torch, to know the fields of the installed version; touches no device.
    """
    hints = _type_hints()
    for name, value in given.items():
        if name in OWNED:
            yield name, OWNED[name]
        elif name not in hints:
            yield name, RENAMED.get(name) or _unknown(name, hints)
        elif name in ("fsdp", "fsdp_config"):
            yield from _fsdp_problems(name, value, is_on=bool(given.get("fsdp")))
        elif complaint := _type_complaint(hints[name], value) or _number_complaint(name, value):
            yield name, complaint
    metric = given.get("metric_for_best_model")
    known = (*HIGHER_IS_BETTER, *LOWER_IS_BETTER)
    if isinstance(metric, str) and metric.removeprefix("eval_") not in known:
        yield "metric_for_best_model", f"got {metric!r}; one of {', '.join(known)}"
    if given.get("fsdp") and given.get("save_only_model"):
        yield "save_only_model", "leaves nothing that a model trained with fsdp: true could go on or end from"
    if given.get("eval_strategy") == "steps" and "save_steps" in given and given.get("load_best_model_at_end", True):
        every = given.get("eval_steps", given.get("logging_steps", LOGGING_STEPS))
        if given["save_steps"] != every:
            yield "save_steps", f"got {given['save_steps']}, but evaluates every {every}; the best state would be lost"


def _fsdp_problems(name: str, value: Any, *, is_on: bool) -> Iterator[tuple[str, str]]:
    if value is None:
        return
    if name == "fsdp":
        if not isinstance(value, bool):
            yield name, f"wants true or false, got {value!r}; the rest goes into fsdp_config"
        return
    if not isinstance(value, Mapping):
        yield name, f"wants a mapping, got {value!r}"
        return
    if not is_on:
        yield name, "without fsdp: true it does nothing"
    for key, setting in value.items():
        place, allowed = f"{name}.{key}", FSDP_CONFIG.get(key)
        if allowed is None:
            close = difflib.get_close_matches(str(key), FSDP_CONFIG, n=1)
            meant = f"did you mean {close[0]}?" if close else f"one of {', '.join(FSDP_CONFIG)}"
            yield place, NOT_IN_FSDP_CONFIG.get(key) or f"not a key of FSDP2 here; {meant}"
        elif allowed:
            if not any(type(setting) is type(one) and setting == one for one in allowed):
                yield place, f"wants one of {json.dumps(allowed)[1:-1]}, got {setting!r}"
        elif not (isinstance(setting, list | tuple) and setting and all(isinstance(one, str) for one in setting)):
            yield place, f"wants a list of names of classes, got {setting!r}"


def _unknown(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, [*known, *RENAMED], n=1)
    meant = f"; did you mean {close[0]}?" if close and close[0] in known else ""
    return f"not a field of transformers' TrainingArguments{meant}"


def _number_complaint(name: str, value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not math.isfinite(value):
        return f"wants a number, got {value!r}"
    if name in ABOVE_ZERO and value <= 0:
        return f"wants a number above 0, got {value!r}"
    if name in NOT_NEGATIVE and value < 0:
        return f"wants 0 or more, got {value!r}"
    if name in SHARES and not 0 <= value < 1:
        return f"wants a share from 0 to below 1, got {value!r}"
    if name == "max_steps" and not (value == -1 or value > 0):
        return f"wants a number above 0, or -1 for num_train_epochs to count, got {value!r}"
    return None


@functools.cache
def _type_hints() -> dict[str, Any]:
    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments)
    return {field.name: hints[field.name] for field in dataclasses.fields(TrainingArguments) if field.init}


def _type_complaint(hint: Any, value: Any) -> str | None:
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    members = typing.get_args(hint) or (hint,)
    enums = [member for member in members if isinstance(member, type) and issubclass(member, enum.Enum)]
    if enums and isinstance(value, str):  # the hint also admits any str, but transformers refuses all but these
        values = [str(item.value) for item in enums[0]]
        close = difflib.get_close_matches(value, values, n=1)
        meant = f"did you mean {close[0]}?" if close else f"one of {', '.join(values)}"
        return None if value in values else f"got {value!r}; {meant}"
    try:
        # JSON mode, since YAML gives lists where a hint may ask for tuples; strict, so that "8" is not taken for 8.
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
        adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError:
        names = [getattr(member, "__name__", str(member)) for member in members if member is not type(None)]
        return f"wants {' or '.join(names)}, got {value!r}"
    return None
