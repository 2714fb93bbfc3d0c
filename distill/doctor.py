"""Checks of the machine and of what a recipe needs; each fault comes with its cure."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import onnxruntime
import psutil
import torch
from huggingface_hub import constants

from distill.data.splits import SPLITS, Splits, read_splits
from distill.errors import GPU_EXTRA, UserError
from distill.inference.runtimes import OPENVINO_EXTRA, can_run, load_cuda_libraries, onnx_runs_on_cuda
from distill.machine.devices import describe_hardware, resolve_device, training_precision
from distill.machine.packages import SWEEP_EXTRA, Finding
from distill.models.loading import load_tokenizer, parameters_of
from distill.models.names import named_by
from distill.models.weights import weight_files
from distill.recipe.budgets import each_budget
from distill.recipe.schema import Recipe
from distill.storage.hub import ask_hub

TENSORBOARD_PORT = 6006
MORE_DISK = "make room, or --output DIR on another disk"
LITTLE_DISK = 5_000_000_000  # bytes; a run of BERT-base with its checkpoints, exports and caches takes more
LITTLE_MEMORY = 4_000_000_000  # bytes
# Memory of a training, in bytes per parameter: fp32 weight, gradient and Adam's two moments. Activations come on top.
BYTES_PER_PARAMETER = 16
# Disk, in bytes per parameter. A checkpoint: weight and Adam's two moments. The finished model: its weight. The exports
# of a student: fp32 once, fp16 twice, int8 once.
CHECKPOINT_BYTES, WEIGHT_BYTES, EXPORT_BYTES = 12, 4, 9


def examine(folder: Path) -> Iterator[Finding]:
    """Yield what was found on this machine; `folder` is where runs will be written."""
    yield from _devices()
    yield from _hub()
    yield from _room(folder)
    yield _port(TENSORBOARD_PORT)


def examine_memory(subject: str, parameters: int, device: str) -> Finding:
    """Return whether a model with this number of parameters can be trained in the free memory."""
    need = BYTES_PER_PARAMETER * parameters
    if resolve_device(device) == "cuda":
        free, where = torch.cuda.mem_get_info()[0], "the GPU"
    else:
        free, where = psutil.virtual_memory().available, "memory"
    found = f"{_gigabytes(need)} for weights, gradients and optimizer, plus batches; {_gigabytes(free)} free in {where}"
    return _verdict(
        subject, found, "a smaller model, or training.optim: adafactor, which needs less memory", is_fine=need <= free
    )


def examine_disk(parameters: int, checkpoints: int, runs: int, folder: Path) -> Finding:
    """Return whether the disk has room for `runs` runs of models with at most this number of parameters."""
    # At least the best and the last checkpoint are kept, and a new one is written before an old one is deleted.
    need = parameters * (runs * (CHECKPOINT_BYTES * (max(2, checkpoints) + 1) + WEIGHT_BYTES) + EXPORT_BYTES)
    free, where = _free(folder)
    found = f"{_gigabytes(need)} for checkpoints, weights and exports; {_gigabytes(free)} free at {where}"
    return _verdict("disk for the recipe", found, MORE_DISK, is_fine=need <= free)


def examine_recipe(recipe: Recipe, folder: Path, device: str) -> Iterator[Finding]:
    """Yield whether the data and models of `recipe` load, and whether the memory of `device` and the disk suffice."""
    yield finding_of("data", lambda: _sizes(read_splits(recipe)))
    largest = checkpoints = 0
    students = len(each_budget(recipe)) or 1
    runs = (recipe.teacher is not None) + (students * (1 + recipe.student.control) if recipe.student else 0)
    for name, stage in (("teacher.model", recipe.teacher), ("student.model", recipe.student)):
        model = stage.model if stage else None
        if model is None:
            continue
        is_pretrained = name == "student.model" or stage.pretrained
        found = finding_of(name, functools.partial(_parts_of, model, name, weights=is_pretrained))
        yield found
        if found.state == "ok":
            largest = max(largest, parameters_of(model))
            checkpoints = max(checkpoints, stage.training.get("save_total_limit") or 2)  # null keeps at least two
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
            "gpu", "fault", "nvidia-smi is installed, but torch sees no GPU",
            "install a torch that was built for CUDA, and a driver that is new enough for it",
        )  # fmt: skip
    device = resolve_device("auto")
    yield Finding("training", "ok", f"on {device}, in {training_precision(device, {})[1]}")
    yield Finding("onnxruntime providers", "ok", ", ".join(onnxruntime.get_available_providers()))
    if device == "cuda" and not onnx_runs_on_cuda():
        yield Finding("onnxruntime", "note", "no CUDA provider: ONNX formats run on the CPU", GPU_EXTRA)
    elif device == "cuda" and (complaint := load_cuda_libraries()):
        yield Finding("onnxruntime", "fault", f"its CUDA provider cannot start: {complaint}", GPU_EXTRA)
    if not can_run("openvino-int8", "cpu"):
        yield Finding("openvino", "note", "not installed: its formats can be neither made nor run", OPENVINO_EXTRA)
    if importlib.util.find_spec("optuna") is None:
        yield Finding("optuna", "note", "not installed: distill sweep cannot search", SWEEP_EXTRA)


def _hub() -> Iterator[Finding]:
    cache = Path(constants.HF_HUB_CACHE)
    models, data_sets = (len(list(cache.glob(f"{kind}--*"))) for kind in ("models", "datasets"))
    if cache.exists() and not os.access(cache, os.W_OK):
        yield Finding("cache", "fault", f"{cache} cannot be written", "HF_HOME=DIR, a folder that can be written")
    else:
        yield Finding("cache", "ok", f"{cache}: {models} models, {data_sets} data sets")
    if constants.is_offline_mode():
        yield Finding("hub", "note", "offline by HF_HUB_OFFLINE: only the cache and local folders are used")
        return
    if complaint := ask_hub():
        yield Finding(
            "hub", "note", f"{constants.ENDPOINT} does not answer ({complaint[:80]})",
            "HF_ENDPOINT=URL for a mirror, or HF_HUB_OFFLINE=1 with local files and folders",
        )  # fmt: skip
    else:
        yield Finding("hub", "ok", f"{constants.ENDPOINT} answers")


def _room(folder: Path) -> Iterator[Finding]:
    free, existing = _free(folder)
    yield _verdict("disk", f"{_gigabytes(free)} free at {existing}", MORE_DISK, is_fine=free >= LITTLE_DISK)
    memory = psutil.virtual_memory()
    found = f"{_gigabytes(memory.available)} of {_gigabytes(memory.total)} free"
    cure = "a smaller per_device_train_batch_size or max_tokens"
    yield _verdict("memory", found, cure, is_fine=memory.available >= LITTLE_MEMORY, otherwise="note")


def _port(port: int) -> Finding:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            return Finding("tensorboard", "note", f"port {port} is taken", "tensorboard --port with another number")
    return Finding("tensorboard", "ok", f"port {port} is free")


def finding_of(subject: str, load: Callable[[], str]) -> Finding:
    """Return what `load` says about `subject` as a finding, which is a fault if `load` raises `UserError`."""
    try:
        return Finding(subject, "ok", load())
    except UserError as error:
        return Finding(subject, "fault", "; ".join(error.problems), error.hint)


def _free(folder: Path) -> tuple[int, Path]:
    """Return the free bytes at `folder`, which need not exist yet, and the part of its path that exists."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free, existing


def _verdict(
    subject: str, found: str, cure: str, *, is_fine: bool, otherwise: Literal["note", "fault"] = "fault"
) -> Finding:
    return Finding(subject, "ok", found) if is_fine else Finding(subject, otherwise, found, cure)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _parts_of(model: str, key: str, *, weights: bool) -> str:
    """Describe the model that the recipe names at `key`; raises `UserError` if it cannot be trained."""
    with named_by(key):
        tokens, parameters = len(load_tokenizer(model)), parameters_of(model)
    size = "no weights"
    if weights:
        size = f"{sum(path.stat().st_size for path in weight_files(model)) / 1e6:.1f} MB of weights"
    return f"{model}: {parameters / 1e6:.1f} M parameters, {tokens} tokens in the vocabulary, {size}"


def _sizes(splits: Splits) -> str:
    sizes = {name: getattr(splits, name) for name in SPLITS}
    return ", ".join(f"{len(rows)} {name}" for name, rows in sizes.items() if rows is not None) + " texts"
