"""The `training` section of a recipe: the rules for its fields, which are those of transformers' TrainingArguments."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from distill.errors import did_you_mean, one_line

# Batches of similar length cost 0.8 points of accuracy and are no faster than micro-batches (docs/results.md).
BY_LENGTH = "leave it out: micro-batches of similar length are as fast, and batches of similar length cost accuracy"

# Names from tutorials for transformers 4, and what to write in transformers 5 instead.
# Source: the migration guide of transformers 5 and the deprecations of 4.41 to 4.57.
RENAMED = {
    "evaluation_strategy": "renamed eval_strategy in transformers 4.46",
    "group_by_length": f"gone in transformers 5; {BY_LENGTH}",
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

# Fields that distill sets itself, and what a user can write instead.
OWNED = {
    "output_dir": "set by distill; write output: next to training:",
    "resume_from_checkpoint": "set by distill; use --resume",
    "use_cpu": "set by distill; use --device cpu",
    "remove_unused_columns": "set by distill, which prepares the columns itself",
    "label_names": "set by distill; class names belong in data.label_names",
    "length_column_name": "set by distill, which writes the lengths itself",
    "disable_tqdm": "set by distill, which shows its own progress",
    "prediction_loss_only": "set by distill, which needs the logits for its metrics",
    "include_for_metrics": "set by distill, which computes its own metrics",
    "batch_eval_metrics": "set by distill, which computes its metrics over the whole split",
    "eval_do_concat_batches": "set by distill, which computes its metrics over the whole split",
    "restore_callback_states_from_checkpoint": "set by distill, which continues with the remaining patience",
    "debug": "not supported; distill stops if a loss, logits or weights are not numbers",
    "logging_nan_inf_filter": "set by distill, which stops if a loss is not a number",
    **dict.fromkeys(
        ("do_train", "do_eval", "do_predict"), "not a setting here; the commands decide what is trained and evaluated"
    ),
    **dict.fromkeys(("deepspeed", "parallelism_config"), "not supported; fsdp: true shards a model over several ranks"),
    "local_rank": "set by the launcher, not by hand",
    "hub_token": "not supported; a recipe must not contain a token",
    **dict.fromkeys(
        ("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision"),
        "not supported; use --push-to-hub NAME",
    ),
}

# Limits of numbers that transformers does not check; without them it fails later or not at all.
ABOVE_ZERO = (
    "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
    "adam_epsilon", "eval_steps", "save_steps", "logging_steps", "eval_accumulation_steps", "torch_empty_cache_steps",
    "dataloader_prefetch_factor", "ddp_bucket_cap_mb", "ddp_timeout",
)  # fmt: skip
NOT_NEGATIVE = (
    "learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "seed", "data_seed", "dataloader_num_workers",
    "eval_delay", "save_total_limit", "neftune_noise_alpha",
)  # fmt: skip
SHARES = ("label_smoothing_factor", "adam_beta1", "adam_beta2")  # from 0 to below 1
BETAS = SHARES[1:]  # torch refuses a mix of whole numbers and fractions
# The largest value of each number. Above it, 64-bit arithmetic overflows somewhere or memory runs out.
MOST = {
    "per_device_train_batch_size": 2**20, "per_device_eval_batch_size": 2**20, "dataloader_num_workers": 256,
    "seed": 2**32 - 1, "data_seed": 2**32 - 1, "num_train_epochs": 2**31 - 1,
}  # fmt: skip
MOST_WHOLE, MOST_FRACTION = 2**31 - 1, 1e300

# Choices that transformers checks too late. `_choices` adds those that transformers declares itself.
CHOICES = {
    "torch_compile_backend": ("inductor", "eager", "aot_eager", "cudagraphs"),
    "torch_compile_mode": ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    "include_num_input_tokens_seen": (True, False, "all", "non_padding", "no"),
}
# Fields that do nothing, or fail, if the data loader has no workers.
OF_WORKERS = ("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context")

# The keys of fields that are mappings, and the values of each.
MAPPINGS: dict[str, dict[str, tuple[Any, ...]]] = {
    "accelerator_config": {
        "split_batches": (True, False),
        "dispatch_batches": (True, False, None),
        "even_batches": (True, False),
        "use_seedable_sampler": (True, False),
        "non_blocking": (True, False),
        "use_configured_state": (True, False),
    },
    "activation_checkpointing_kwargs": {
        "use_reentrant": (True, False),
        "preserve_rng_state": (True, False),
        "early_stop": (True, False),
        "determinism_check": ("default", "none"),
        "debug": (True, False),
        "offload": (True, False),
        "every_n_layers": tuple(range(1, 25)),
    },
}
MAPPINGS["gradient_checkpointing_kwargs"] = MAPPINGS["activation_checkpointing_kwargs"]  # the older name
GIVEN_TO_SCHEDULES = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")  # by Trainer

# The fields that `distill sweep` may search over: they change what is learned, and Trainer reads them when training
# starts. Seeds are left out, because choosing one would select luck, and so are fields that set when and how a model is
# evaluated.
SWEEPABLE = (
    "learning_rate", "weight_decay", "num_train_epochs", "max_steps", "per_device_train_batch_size",
    "gradient_accumulation_steps", "warmup_steps", "lr_scheduler_type", "lr_scheduler_kwargs", "optim", "optim_args",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "label_smoothing_factor", "train_sampling_strategy",
)  # fmt: skip

# The keys of `fsdp_config` with the values of each, then the keys of transformers that are refused, with the reason.
FSDP_CONFIG: dict[str, tuple[Any, ...]] = {
    "version": (2,),
    "reshard_after_forward": (True, False),
    "cpu_offload": (True, False),
    "state_dict_type": ("FULL_STATE_DICT", "SHARDED_STATE_DICT"),
    "auto_wrap_policy": ("TRANSFORMER_BASED_WRAP", "NO_WRAP"),
    "transformer_layer_cls_to_wrap": (),  # any names of layer classes
}
NOT_IN_FSDP_CONFIG = {
    # accelerate 1.15: checkpoint_wrapper(layer, preserve_rng_state=False)
    "activation_checkpointing": "recomputes activations with other dropout; write it next to fsdp, not in its config",
    "cpu_ram_efficient_loading": "not supported; each rank reads the model",
    "min_num_params": "not supported: FSDP2 cannot wrap the lists of layers that a limit by size would pick",
}

LOGGING_STEPS = 50
# The metrics of an evaluation, for metric_for_best_model.
OF_SEVERAL_LABELS = ("f1_per_text", "micro_f1", "mean_average_precision")  # of texts with one label there are none
HIGHER_IS_BETTER = ("accuracy", "macro_f1", "roc_auc", *OF_SEVERAL_LABELS)
LOWER_IS_BETTER = ("loss", "log_loss", "ece", "brier")


def with_defaults(given: Mapping[str, Any], *, seed: int, metric: str = "accuracy") -> dict[str, Any]:
    """Return `given` with distill's defaults: save at each evaluation, keep two checkpoints, end with the best one.

    `metric` says which is best, unless `given` does.

    Saving follows evaluation, because checkpoint selection needs an evaluation of each checkpoint. With
    `eval_strategy: "no"` training ends with the last state.
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
        metric = given.get("metric_for_best_model", metric)
        defaults |= {"load_best_model_at_end": True, "metric_for_best_model": metric}
        defaults["greater_is_better"] = str(metric).removeprefix("eval_") not in LOWER_IS_BETTER
    return defaults | dict(given)


def problems(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield `(field, what is wrong with it)` for every mistake in a `training` section.

    This imports transformers (and so torch) for the fields of the installed version. It touches no device.
    """
    hints = _type_hints()
    for name, value in given.items():
        if name in OWNED:
            yield name, OWNED[name]
        elif name not in hints:
            yield name, RENAMED.get(name) or _unknown(name, hints)
        elif name in ("fsdp", "fsdp_config"):
            yield from _fsdp_problems(name, value, is_on=bool(given.get("fsdp")))
        elif complaint := (
            _type_complaint(hints[name], value) or _choice_complaint(name, value) or _number_complaint(name, value)
        ):
            yield name, complaint
        elif name in MAPPINGS and value is not None:
            yield from _mapping_problems(name, value, MAPPINGS[name])
        elif name in OF_WORKERS and value not in (None, False) and given.get("dataloader_num_workers") == 0:
            yield name, "needs dataloader_num_workers above 0, got 0"
    yield from _schedule_problems(given)
    metric = given.get("metric_for_best_model")
    known = (*HIGHER_IS_BETTER, *LOWER_IS_BETTER)
    if isinstance(metric, str) and metric.removeprefix("eval_") not in known:
        yield "metric_for_best_model", f"got {metric!r}; one of {', '.join(known)}"
    if given.get("save_strategy") == "best" and given.get("eval_strategy") == "no":
        yield "save_strategy", "got 'best', which needs evaluations, but eval_strategy is no"
    if given.get("fsdp") and given.get("save_only_model"):
        yield "save_only_model", "leaves nothing to resume from, or to load the final model from, with fsdp: true"
    if given.get("eval_strategy") == "steps" and "save_steps" in given and given.get("load_best_model_at_end", True):
        every = given.get("eval_steps", given.get("logging_steps", LOGGING_STEPS))
        if given["save_steps"] != every:
            got = f"got {given['save_steps']}, but evaluations are every {every} steps"
            yield "save_steps", f"{got}; the best state would be lost"


def _fsdp_problems(name: str, value: Any, *, is_on: bool) -> Iterator[tuple[str, str]]:
    if value is None:
        return
    if name == "fsdp":
        if not isinstance(value, bool):
            yield name, f"wants true or false, got {value!r}; the rest belongs in fsdp_config"
    elif not isinstance(value, Mapping):
        yield name, f"wants a mapping, got {value!r}"
    else:
        if not is_on:
            yield name, "does nothing without fsdp: true"
        yield from _mapping_problems(name, value, FSDP_CONFIG, NOT_IN_FSDP_CONFIG)


def _mapping_problems(
    name: str,
    value: Mapping[str, Any],
    known: Mapping[str, tuple[Any, ...]],
    refused: Mapping[str, str] = types.MappingProxyType({}),
) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the keys and values of a mapping; `known` has the values that each key may take."""
    for key, setting in value.items():
        place, allowed = f"{name}.{key}", known.get(key)
        if allowed is None:
            yield place, refused.get(key) or f"not a key here; {did_you_mean(str(key), known)}"
        elif allowed:
            if not any(type(setting) is type(one) and setting == one for one in allowed):
                yield place, f"wants one of {json.dumps(allowed)[1:-1]}, got {setting!r}"
        elif not (isinstance(setting, list | tuple) and setting and all(isinstance(one, str) for one in setting)):
            yield place, f"wants a list of layer class names, got {setting!r}"


def _unknown(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, [*known, *RENAMED], n=1)
    meant = f"; did you mean {close[0]}?" if close and close[0] in known else ""
    return f"not a field of transformers' TrainingArguments{meant}"


def _schedule_problems(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the learning rate schedule and its settings, beyond their types."""
    kind, settings, rate = (given.get(name) for name in ("lr_scheduler_type", "lr_scheduler_kwargs", "learning_rate"))
    if kind is None and not settings:
        return
    from torch import nn, optim
    from transformers import optimization

    functions = {str(one.value): function for one, function in optimization.TYPE_TO_SCHEDULER_FUNCTION.items()}
    kind, settings = "linear" if kind is None else kind, {} if settings is None else settings
    if not isinstance(kind, str) or kind not in functions or not isinstance(settings, Mapping):
        return
    by_metric = {
        "reduce_lr_on_plateau": optim.lr_scheduler.ReduceLROnPlateau,
        "greedy": getattr(optimization, "GreedyLR", None),  # not in every version
    }
    parameters = inspect.signature(by_metric.get(kind, functions[kind])).parameters.values()
    takes = [one for one in parameters if one.name not in GIVEN_TO_SCHEDULES]
    names = [one.name for one in takes]
    if unknown := [key for key in settings if key not in names]:
        known = f"one of {', '.join(names)}" if names else "it has none"
        yield "lr_scheduler_kwargs", f"{unknown[0]} is not a setting of the schedule {kind}; {known}"
    elif missing := [one.name for one in takes if one.default is one.empty and one.name not in settings]:
        yield "lr_scheduler_type", f"{kind} wants lr_scheduler_kwargs: {{{missing[0]}: ...}}"
    else:
        optimizer = optim.SGD([nn.Parameter()], lr=rate if isinstance(rate, float) and rate > 0 else 5e-5)
        try:
            schedule = optimization.get_scheduler(kind, optimizer, 1, 4, dict(settings))
            for _ in range(4):
                optimizer.step()
                schedule.step(*[1.0][: kind in by_metric])
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            yield "lr_scheduler_kwargs", f"got {dict(settings)}, but {kind} fails with it: {one_line(error)}"


def _choice_complaint(name: str, value: Any) -> str | None:
    if name == "optim_args" and value and not re.fullmatch(r"[^=,]+=[^=,]+(,[^=,]+=[^=,]+)*", value):
        return f"wants KEY=VALUE, or several of them with commas between, got {value!r}"
    choices = _choices().get(name)
    if choices is None or value is None:
        return None
    # There may be one backend per device: cuda:nccl,cpu:gloo.
    parts = [part.split(":")[-1] for part in value.split(",")] if name == "ddp_backend" else [value]
    if all(any(type(part) is type(one) and part == one for one in choices) for part in parts):
        return None
    return f"wants one of {', '.join(json.dumps(one).strip(chr(34)) for one in choices)}, got {value!r}"


def _number_complaint(name: str, value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if value != value or value in (math.inf, -math.inf):
        return f"wants a number, got {value!r}"
    if name in BETAS and type(value) is int and value == 0:
        return "wants a fraction: write 0.0"
    most = MOST.get(name, MOST_WHOLE if isinstance(value, int) else MOST_FRACTION)
    if abs(value) > most:
        return f"wants a number no larger than {most:.10g}, got {value!r:.100}"
    if name in ABOVE_ZERO and value <= 0:
        return f"wants a number above 0, got {value!r}"
    if name in NOT_NEGATIVE and value < 0:
        return f"wants 0 or more, got {value!r}"
    if name in SHARES and not 0 <= value < 1:
        return f"wants a share from 0 to below 1, got {value!r}"
    if name == "max_steps" and not (value == -1 or value > 0):
        return f"wants a number above 0, or -1 to use num_train_epochs, got {value!r}"
    return None


@functools.cache
def _choices() -> dict[str, Any]:
    from transformers import TrainingArguments

    fields = dataclasses.fields(TrainingArguments)
    return {field.name: list(field.metadata["choices"]) for field in fields if "choices" in field.metadata} | CHOICES


@functools.cache
def _type_hints() -> dict[str, Any]:
    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments)
    return {field.name: hints[field.name] for field in dataclasses.fields(TrainingArguments) if field.init}


def _type_complaint(hint: Any, value: Any) -> str | None:
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    members = typing.get_args(hint) or (hint,)
    if any(dict in (member, typing.get_origin(member)) for member in members) and isinstance(value, str):
        return f"wants a mapping, got {value!r}"  # transformers would parse it as JSON or read a file of that name
    enums = [member for member in members if isinstance(member, type) and issubclass(member, enum.Enum)]
    if enums and isinstance(value, str):  # the hint allows any str, but transformers only these
        values = [str(item.value) for item in enums[0]]
        return None if value in values else f"got {value!r}; {did_you_mean(value, values)}"
    try:
        # JSON mode, so that a list may stand for a tuple; strict, so that "8" is not taken for 8.
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
        adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError:
        names = [getattr(member, "__name__", str(member)) for member in members if member is not type(None)]
        return f"wants {' or '.join(names)}, got {value!r}"
    return None
