"""The cards of a run folder and its exports: what each is, how good, made from what, and what it is not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from distill.page import render
from distill.proofs import Proof
from distill.recipe import Recipe, with_last_names
from distill.recipe_file import dump_recipe


def card(
    name: str,
    role: str,
    recipe: Recipe,
    metrics: Mapping[str, Any],
    *,
    architecture: str,
    parameters: int,
    label_names: Sequence[str],
    sizes: Mapping[str, int],
    parents: Mapping[str, Any],
) -> str:
    """Return a README.md in the Hub's format; `metrics` are those of metrics.json, `sizes` texts per split.

    It is made to be published: of paths it has the last name alone.
    """
    public = with_last_names(recipe)
    data = public.data.dataset or ", ".join(public.data.files.model_dump(exclude_none=True).values())
    on_hub = recipe.data.dataset is not None and recipe.data.dataset == public.data.dataset
    base = parents.get("model")
    is_base = base and not Path(base).exists() and (role != "teacher" or recipe.teacher.pretrained)
    text = dump_recipe(public)
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["distill", role],
        base_model=base if is_base else None,
        datasets=[recipe.data.dataset] if on_hub else None,
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="text-classification", dataset_type="text", dataset_name=data, metric_type=metric,
                metric_value=metrics["test"][metric],
            )
            for metric in ("accuracy", "macro_f1")
        ],
    )  # fmt: skip
    return render(
        "card.md",
        metadata=metadata.to_yaml(),
        name=_code(name),
        role=role,
        architecture=architecture,
        parameters=parameters,
        label_names=[_code(name) for name in label_names],
        teachers=[
            _code(Path(teacher).name if Path(teacher).is_absolute() else teacher)
            for teacher in parents.get("teachers", ())
        ],
        test=metrics["test"],
        calibrated=metrics.get("calibration", {}).get("temperature", 1.0) != 1,
        faults=metrics["warnings"],
        data=_code(data),
        sizes=", ".join(f"{count} {split}" for split, count in sizes.items()),
        max_tokens=recipe.data.max_tokens,
        warnings=metrics["training"]["warnings"],
        recipe=text,
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0)),
    )


def export_card(model: str, proof: Proof, *, label_names: Sequence[str], calibrated: bool) -> str:
    """Return a README.md in the Hub's format for a format of `model` that passed its proof."""
    library = "transformers" if proof.format.startswith("torch-") else proof.format.split("-")[0]
    metadata = ModelCardData(
        library_name=library, pipeline_tag="text-classification", tags=["distill", proof.format], model_name=model
    )
    return render(
        "export_card.md",
        metadata=metadata.to_yaml(),
        model=_code(model),
        format=proof.format,
        proof=proof,
        examples=sum(int(found["examples"] or 0) for found in proof.per_class.values()),
        label_names=[_code(name) for name in label_names],
        calibrated=calibrated,
    )


def _code(text: str) -> str:
    """A name as Markdown shows it, whatever is in it."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`"
