"""Export a finished model: write each format, prove it on the validation texts, and keep its proof."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path

from distill.data.pairs import texts_of
from distill.data.splits import Splits, gold_labels_of
from distill.errors import FolderError
from distill.export.card import export_card
from distill.export.formats import export_formats, keep_proofs
from distill.export.onnx_graph import graph_inputs
from distill.export.proofs import Bounds, Proof
from distill.inference.classifier import Classifier, load
from distill.inference.runtimes import onnx_runs_on_cuda
from distill.inference.torch_session import TorchSession
from distill.machine.devices import Device
from distill.measuring.alignment import align
from distill.models.loading import reorder_classes
from distill.recipe.schema import Card
from distill.storage.run_folder import RunFolder

log = logging.getLogger("distill")


def export_model(
    model: Path | str,
    splits: Splits,
    folder: Path,
    formats: Sequence[str],
    *,
    bounds: Bounds,
    device: Device,
    about: Card,
    base_model: str | None = None,
) -> list[Proof]:
    """Export the classifier `model` to `formats` in `folder`; return a proof of each, also of those that failed.

    `about` and `base_model` are for the cards. The formats have the class order of `splits` and are proved on its
    validation texts. Raises `FolderError` if the model is itself an export, and `ModelError` if it has other classes
    than the data or is for another task.
    """
    classifier = load(model, "cpu")
    if not isinstance(classifier, Classifier) or not isinstance(classifier.session, TorchSession):
        raise FolderError(f"{model}: is itself an export; name the model that it came from")
    columns, thresholds = align(classifier, splits.label_names, splits.label_map, task=splits.task, name=str(model))
    if device == "cuda" and not onnx_runs_on_cuda():
        log.info("export: this onnxruntime has no CUDA provider; ONNX formats are proved on the CPU")
    proofs = export_formats(
        reorder_classes(classifier.session.model.float(), columns, splits.label_names),
        classifier.tokenizer,
        splits.label_names,
        texts_of(splits.validation),
        gold_labels_of(splits.validation),
        folder,
        formats,
        thresholds=thresholds,
        truncation=classifier.truncation,
        temperature=_temperature_of(Path(model)),
        bounds=bounds,
        device=device,
        card=functools.partial(
            export_card,
            Path(model).absolute().name,
            architecture=classifier.session.model.config.model_type,
            label_names=splits.label_names,
            thresholds=thresholds,
            truncation=classifier.truncation,
            room=classifier.truncation.max_tokens - classifier.tokenizer.num_special_tokens_to_add(),
            inputs=graph_inputs(classifier.session.model.config),
            about=about,
            base_model=base_model,
        ),
        progress=lambda step: log.info("export: %s", step),
    )
    return keep_proofs(proofs, folder)


def _temperature_of(model: Path) -> float | None:
    """Return the temperature by which a run's logits are divided; None for a model that distill did not train."""
    run = RunFolder(model)
    return run.read_metrics().get("calibration", {}).get("temperature", 1.0) if run.is_finished else None
