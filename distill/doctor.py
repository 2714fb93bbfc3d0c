"""What is wrong with a machine, each fault with its cure; what is right, in one line each."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import onnxruntime
import psutil
import torch
from huggingface_hub import constants

from distill.data.splits import SPLITS, Splits, read_splits
from distill.errors import UserError
from distill.inference.runtimes import OPENVINO_EXTRA, can_run, onnx_runs_on_cuda
from distill.machine.devices import describe_hardware, resolve_device, training_precision
from distill.machine.packages import SWEEP_EXTRA, Finding
from distill.models.loading import load_tokenizer, parameters_of
from distill.models.names import named_by
from distill.models.weights import weight_files
from distill.recipe.schema import Recipe
from distill.storage.hub import ask_hub

TENSORBOARD_PORT = 6006
LITTLE_DISK = 5_000_000_000  # bytes: less than what a run of BERT-base leaves (checkpoints, exports, caches)
LITTLE_MEMORY = 4_000_000_000
# What a training holds of each parameter: fp32 weight, gradient and Adam's two moments; then what a batch leaves.
BYTES_PER_PARAMETER = 16
# What lands on disk of each: a checkpoint's weight and Adam's two moments; the finished weight; a student's exports in
# fp32, twice in fp16 and in int8.
CHECKPOINT_BYTES, WEIGHT_BYTES, EXPORT_BYTES = 12, 4, 9


def examine(folder: Path) -> Iterator[Finding]:
    """Yield what was found of the machine; `folder` is where runs would go."""
    yield from _devices()
    yield from _hub()
    yield from _room(folder)
    yield _port(TENSORBOARD_PORT)


def examine_memory(subject: str, parameters: int, device: str) -> Finding:
    """Return whether a model of so many parameters can be trained in the memory that is there."""
    need = BYTES_PER_PARAMETER * parameters
    if resolve_device(device) == "cuda":
        there, where = torch.cuda.mem_get_info()[0], "the GPU"
    else:
        there, where = psutil.virtual_memory().available, "memory"
    found = (
        f"{_gigabytes(need)} for weights, gradients and optimiser, and the batches; {_gigabytes(there)} free in {where}"
    )
    if need > there:
        return Finding(
            subject, "fault", found, "a smaller model, or training.optim: adafactor, which keeps less of each parameter"
        )
    return Finding(subject, "ok", found)


def examine_disk(parameters: int, checkpoints: int, runs: int, folder: Path) -> Finding:
    """Return whether `runs` runs of at most so many parameters, and all they leave, fit on disk."""
    # The best and the last are kept at least, and a new one is written before an old one goes.
    need = parameters * (runs * (CHECKPOINT_BYTES * (max(2, checkpoints) + 1) + WEIGHT_BYTES) + EXPORT_BYTES)
    there, where = _free(folder)
    found = f"{_gigabytes(need)} for checkpoints, weights and exports; {_gigabytes(there)} free at {where}"
    if need > there:
        return Finding(
            "disk for the recipe",
            "fault",
            found,
            "make room, or --output DIR on another disk",
        )
    return Finding("disk for the recipe", "ok", found)


def examine_recipe(recipe: Recipe, folder: Path, device: str) -> Iterator[Finding]:
    """Yield whether the data and models of `recipe` can be had now, trained in the memory of `device` and kept."""
    yield attempt("data", lambda: _sizes(read_splits(recipe)))
    largest = checkpoints = 0
    runs = (recipe.teacher is not None) + (1 + recipe.student.control if recipe.student else 0)
    for name, stage in (("teacher.model", recipe.teacher), ("student.model", recipe.student)):
        model = stage.model if stage else None
        if model is None:
            continue
        is_pretrained = name == "student.model" or stage.pretrained
        found = attempt(name, functools.partial(_parts_of, model, name, weights=is_pretrained))
        yield found
        if found.state == "ok":
            largest = max(largest, parameters_of(model))
            checkpoints = max(checkpoints, stage.training.get("save_total_limit") or 2)  # null: at least two
            yield examine_memory(f"memory for {name}", parameters_of(model), device)
    if largest:
        yield examine_disk(largest, checkpoints, runs, folder)


def _devices() -> Iterator[Finding]:
    hardware = describe_hardware()
    yield Finding("cpu", "ok", f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['cpu_capability']}")
    for index, name in enumerate(hardware["gpus"]):
        free, total = torch.cuda.mem_get_info(index)
        yield Finding(f"gpu {index}", "ok", f"{name}, {_gigabytes(free)} of {_gigabytes(total)} free")
    if not hardware["gpus"] and shutil.which("nvidia-smi"):
        yield Finding(
            "gpu", "fault", "nvidia-smi is here, but torch sees no GPU",
            "install a torch that was built for CUDA, and a driver that is new enough for it",
        )  # fmt: skip
    device = resolve_device("auto")
    yield Finding("training", "ok", f"on {device}, in {training_precision(device, {})[1]}")
    yield Finding("onnxruntime providers", "ok", ", ".join(onnxruntime.get_available_providers()))
    if device == "cuda" and not onnx_runs_on_cuda():
        yield Finding(
            "onnxruntime", "note", "no CUDA provider: ONNX formats run on the CPU", "pip install onnxruntime-gpu"
        )
    if not can_run("openvino-int8", "cpu"):
        yield Finding("openvino", "note", "not installed: its formats cannot be made or run", OPENVINO_EXTRA)
    if importlib.util.find_spec("optuna") is None:
        yield Finding("optuna", "note", "not installed: distill sweep cannot search", SWEEP_EXTRA)


def _hub() -> Iterator[Finding]:
    cache = Path(constants.HF_HUB_CACHE)
    models, data_sets = (len(list(cache.glob(f"{kind}--*"))) for kind in ("models", "datasets"))
    if cache.exists() and not os.access(cache, os.W_OK):
        yield Finding("cache", "fault", f"{cache} cannot be written", "HF_HOME=DIR, one that can be")
    else:
        yield Finding("cache", "ok", f"{cache}: {models} models, {data_sets} data sets")
    if constants.is_offline_mode():
        yield Finding("hub", "note", "offline by HF_HUB_OFFLINE: only what the cache and local folders hold can be had")
        return
    if complaint := ask_hub():
        yield Finding(
            "hub", "note", f"{constants.ENDPOINT} does not answer ({complaint[:80]})",
            "HF_ENDPOINT=URL for a mirror, or HF_HUB_OFFLINE=1 and local files and folders",
        )  # fmt: skip
    else:
        yield Finding("hub", "ok", f"{constants.ENDPOINT} answers")


def _room(folder: Path) -> Iterator[Finding]:
    free, existing = _free(folder)
    found = f"{_gigabytes(free)} free at {existing}"
    if free < LITTLE_DISK:
        yield Finding("disk", "fault", found, "make room, or --output DIR on another disk")
    else:
        yield Finding("disk", "ok", found)
    memory = psutil.virtual_memory()
    found = f"{_gigabytes(memory.available)} of {_gigabytes(memory.total)} free"
    if memory.available < LITTLE_MEMORY:
        yield Finding("memory", "note", found, "a smaller per_device_train_batch_size or max_tokens")
    else:
        yield Finding("memory", "ok", found)


def _port(port: int) -> Finding:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            return Finding("tensorboard", "note", f"port {port} is taken", "tensorboard --port with another number")
    return Finding("tensorboard", "ok", f"port {port} is free")


def attempt(subject: str, load: Callable[[], str]) -> Finding:
    """Return what `load` says of something that it could load or make, or the fault that it met."""
    try:
        return Finding(subject, "ok", load())
    except UserError as error:
        return Finding(subject, "fault", "; ".join(error.problems), error.hint)


def _free(folder: Path) -> tuple[int, Path]:
    """The bytes that are free where `folder` is or will be, and the part of its path that is there."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free, existing


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _parts_of(model: str, key: str, *, weights: bool) -> str:
    """What there is to train from of the model that the recipe names at `key`; raises if training needs more."""
    with named_by(key):
        tokens, parameters = len(load_tokenizer(model)), parameters_of(model)
    size = (
        f"{sum(path.stat().st_size for path in weight_files(model)) / 1e6:.1f} MB of weights"
        if weights
        else "no weights"
    )
    return f"{model}: {parameters / 1e6:.1f} M parameters, {tokens} tokens known, {size}"


def _sizes(splits: Splits) -> str:
    sizes = {name: getattr(splits, name) for name in SPLITS}
    return ", ".join(f"{len(rows)} {name}" for name, rows in sizes.items() if rows is not None) + " texts"
