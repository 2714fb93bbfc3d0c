"""Write the model card of an export: its model, its format and the figures of its proof."""

from __future__ import annotations

from collections.abc import Sequence

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
