"""The model card of a run folder: what it is, how good, made from what, and what it must not be taken for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from distill.page import render
from distill.recipe import Recipe
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
    public = Recipe.model_validate_json(json.dumps(_last_names(recipe.model_dump(mode="json", exclude_none=True))))
    data = public.data.dataset or ", ".join(public.data.files.model_dump(exclude_none=True).values())
    base = parents.get("model")
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["distill", role],
        base_model=base if base == _last_names(base) else None,  # a local folder is no model of the Hub
        datasets=[public.data.dataset] if public.data.dataset else None,
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
        name=name,
        role=role,
        architecture=architecture,
        parameters=parameters,
        label_names=label_names,
        teachers=[_last_names(teacher) for teacher in parents.get("teachers", ())],
        test=metrics["test"],
        calibrated="calibration" in metrics,
        data=data,
        sizes=", ".join(f"{count} {split}" for split, count in sizes.items()),
        max_tokens=recipe.data.max_tokens,
        warnings=metrics["training"]["warnings"],
        recipe=dump_recipe(public),
    )


def _last_names(value: Any) -> Any:
    """The same value, every absolute path in it cut to its last name."""
    if isinstance(value, dict):
        return {key: _last_names(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_last_names(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
