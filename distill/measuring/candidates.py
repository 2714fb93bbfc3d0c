"""What a report reads from model folders: candidates to measure, learning curves and flipped texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from distill.inference.runtimes import FOR_CPUS, OPENVINO_EXTRA, can_run, openvino_precision
from distill.machine.devices import Device, has_fast_bf16
from distill.measuring.benchmark import Candidate
from distill.measuring.training_log import selected_step, training_curve
from distill.models.names import is_baseline
from distill.models.weights import ONNX_WEIGHTS, OPENVINO_WEIGHTS
from distill.recipe.schema import FORMATS
from distill.storage.checksums import check_whole
from distill.storage.exports import EXPORT_PROOFS, FLIPPED, read_proofs
from distill.storage.records import read_lines
from distill.storage.run_folder import RunFolder

FLIPPED_SHOWN = 10  # texts per format; its file has them all


class _Flipped(TypedDict):
    """A line of flipped-FORMAT.jsonl (see proofs.flips)."""

    text: str
    gold: str
    model: str
    format: str
    model_probabilities: dict[str, float]
    format_probabilities: dict[str, float]
    changed: NotRequired[list[str]]  # if a text may have several labels


def learning_curves(models: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield the learning curve of each run folder among `models` (see training_log.training_curve)."""
    for run in map(RunFolder, models):
        if run.is_finished and run.metrics_log.is_file():
            kept = selected_step(run.read_metrics()["training"])
            yield {"model": str(run.path), **training_curve(run.read_manifest()["role"], run.read_log(), kept)}


def flipped_texts(models: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield for each export its format, how many texts it answers differently from its model, and the first of them."""
    for exports in (RunFolder(model).export for model in models):
        for name in FORMATS:
            path = exports / name / FLIPPED
            if path.is_file():
                check_whole(path.parent, (path.name,))
                texts = read_lines(path, _Flipped)
                first = texts[:FLIPPED_SHOWN]
                yield {"model": str(exports.parent), "format": name, "total": len(texts), "texts": first}


def candidates_of(model: Path, devices: Sequence[Device], notes: list[str]) -> Iterator[Candidate]:
    """Yield a model and its exports on each device; add a note for each that cannot be measured there."""
    run = RunFolder(model)
    role = run.read_manifest().get("role", "other") if run.is_finished else "other"
    exports = run.export
    proofs = read_proofs(exports) if (exports / EXPORT_PROOFS).is_file() else {}
    for name, proof in proofs.items():
        if not proof["passed"]:
            notes.append(f"{role} {name} is not measured: it failed validation ({proof['reason']}).")
    if is_baseline(model):
        yield Candidate(role, str(model), model, "cpu")
        return
    for device in devices:
        is_torch = not any((model / weights).is_file() for weights in (ONNX_WEIGHTS, OPENVINO_WEIGHTS))
        if device == "cuda" and (model / OPENVINO_WEIGHTS).is_file():
            notes.append(f"{model} is not measured on CUDA: OpenVINO formats run on CPUs.")
            continue
        yield Candidate(role, str(model), model, device)
        if has_fast_bf16(device) and is_torch:
            yield Candidate(role, str(model), model, device, "bfloat16")
        for name in FORMATS:
            if not (exports / name / "config.json").is_file() or (name in FOR_CPUS and device == "cuda"):
                continue
            if not can_run(name, device):
                lacking = f"OpenVINO ({OPENVINO_EXTRA})" if device == "cpu" else "an onnxruntime with a CUDA provider"
                notes.append(f"{role} {name} is not measured on {device}: {lacking} is not installed.")
                continue
            if name == "torch-fp16" and device == "cpu":
                notes.append(f"{role} torch-fp16 is not measured on the CPU: it is meant for GPUs.")
                continue
            yield Candidate(role, str(model), exports / name, device)
            if name == "openvino-bf16" and openvino_precision() == "f32":
                notes.append(f"{role} openvino-bf16 ran in fp32: this CPU is not faster in bf16.")
            if name == "onnx-fp16" and device == "cpu":
                notes.append(f"{role} onnx-fp16 is meant for GPUs: a CPU converts it to fp32 at run time.")
