"""Write the model cards of an export and of a bundle: formats, and the figures of their proofs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from huggingface_hub import ModelCardData

from distill.data.encoding import Truncation
from distill.decisions import Thresholds
from distill.export.proofs import Proof
from distill.models.config import NGRAMS
from distill.recipe.schema import Card
from distill.report.page import as_code, render


def export_card(
    model: str,
    proof: Proof,
    *,
    architecture: str,
    label_names: Sequence[str],
    thresholds: Thresholds,
    truncation: Truncation,
    room: int,
    inputs: Sequence[str],
    about: Card,
    base_model: str | None = None,
) -> str:
    """Return the README.md, in the Hub's format, of an export of `model` that passed its proof.

    A text has `room` for that many tokens besides the special ones. `inputs` are those of its graph. `base_model` is
    the name on the Hub of the model that was exported, if it has one.
    """
    library = "transformers" if proof.format.startswith("torch-") else proof.format.split("-")[0]
    metadata = ModelCardData(
        library_name=library,
        pipeline_tag="text-classification",
        tags=["distill", proof.format],
        model_name=model,
        language=about.language,
        license=about.license,
        base_model=base_model,
        **({"base_model_relation": "quantized"} if base_model and not proof.format.endswith("fp32") else {}),
    )
    return render(
        "export_card.md",
        metadata=metadata.to_yaml(),
        model=as_code(model),
        format=proof.format,
        proof=proof,
        is_ours=architecture == NGRAMS,
        label_names=[as_code(name) for name in label_names],
        thresholds=thresholds,
        truncation=truncation,
        reads_pairs=truncation.kept == "longest_first",
        inputs=" and ".join(map(as_code, inputs)) if len(inputs) < 3 else ", ".join(map(as_code, inputs)),
        ends=truncation.ends(room),
    )


def bundle_card(
    name: str,
    card: str,
    *,
    places: Mapping[str, Sequence[str]],
    proofs: Mapping[str, Mapping[str, Any]],
    weights: Sequence[str],
    architecture: str,
    several: bool,
    truncation: Truncation,
    triton: str | None,
) -> str:
    """Return the README.md of the bundle `name`: the model's own `card`, and which files are what and who loads them.

    `places` has the files of each format, and `proofs` its figures. `weights` are those of torch. With `several`, a
    text may have several labels. `triton` is the name of the model in Triton's repository, if there is one.
    """
    firsts = {format: files[0] for format, files in places.items()}
    onnx = next((file for format, file in firsts.items() if format.startswith("onnx-")), None)
    openvino = next((file for format, file in firsts.items() if format.startswith("openvino-")), None)
    dtypes = {"onnx-fp32": "fp32", "onnx-fp16": "fp16", "onnx-int8": "q8"}
    section = render(
        "bundle_card.md",
        rows=[
            {
                "files": [as_code(file) for file in files],
                "format": format,
                "agreement": proofs[format]["agreement"],
                "megabytes": proofs[format]["size_bytes"] / 1e6,
            }
            for format, files in places.items()
        ],
        weights=[as_code(file) for file in weights],
        onnx=onnx,
        onnx_name=PurePosixPath(onnx or "").name,
        dtype=next((dtype for format, dtype in dtypes.items() if format in places), None),
        openvino=openvino,
        openvino_name=PurePosixPath(openvino or "").name,
        example='("a text", "another")' if truncation.kept == "longest_first" else '"a text"',
        is_ours=architecture == NGRAMS,
        several=several,
        truncation=truncation,
        triton=triton,
    )
    return f"{card.rstrip() or f'# {as_code(name)}'}\n\n{section}"
