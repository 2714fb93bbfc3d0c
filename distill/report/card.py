"""The model card of a run folder: the model, its figures, data and limits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from distill.data.answers import answers_in_words
from distill.data.encoding import NO_LIMIT, Truncation
from distill.recipe.file import dump_recipe
from distill.recipe.schema import Recipe, with_last_names
from distill.report.classes import class_table
from distill.report.page import as_code, render

# A figure of metrics.json, with the Hub's name for the metric, a title, and the metric's arguments.
EXACT = ("accuracy", "accuracy", "accuracy", None)
MACRO = ("macro_f1", "f1", "macro-F1", {"average": "macro"})
MICRO = ("micro_f1", "f1", "micro-F1", {"average": "micro"})


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
    """Return a README.md in the Hub's format.

    `metrics` are the contents of metrics.json, `sizes` the number of texts per split. The card can be published: of
    every path, it has only the last name.
    """
    public = with_last_names(recipe)
    data = public.data.dataset or ", ".join(public.data.files.model_dump(exclude_none=True).values())
    on_hub = recipe.data.dataset is not None and recipe.data.dataset == public.data.dataset
    base = parents.get("model")
    is_base = base and not Path(base).exists() and (role != "teacher" or recipe.teacher.pretrained)
    text = dump_recipe(public)
    cut = metrics["training"]["truncation"]
    several = "micro_f1" in metrics["test"]  # labels a text
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["distill", role],
        language=recipe.card.language,
        license=recipe.card.license,
        base_model=base if is_base else None,
        **({"base_model_relation": "finetune"} if is_base else {}),
        datasets=[recipe.data.dataset] if on_hub else None,
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="text-classification", dataset_type=recipe.data.dataset if on_hub else "text",
                dataset_name=data, dataset_split=recipe.data.splits.test if on_hub else "test", metric_type=metric,
                metric_name=title, metric_args=arguments, metric_value=metrics["test"][key],
            )
            for key, metric, title, arguments in (EXACT, MICRO if several else MACRO)
        ],
    )  # fmt: skip
    return render(
        "card.md",
        metadata=metadata.to_yaml(),
        name=as_code(name),
        role=role,
        architecture=architecture,
        parameters=parameters,
        label_names=[as_code(name) for name in label_names],
        teachers=[
            as_code(Path(teacher).name if Path(teacher).is_absolute() else teacher)
            for teacher in parents.get("teachers", ())
        ],
        answers=[as_code(answers_in_words(file)) for file in parents.get("answer_files", ())],
        several=several,
        reads_pairs=cut["kept"] == "longest_first",
        test=metrics["test"],
        classes=class_table(metrics["classes"]),
        calibrated=metrics.get("calibration", {}).get("temperature", 1.0) != 1,
        faults=metrics["warnings"],
        data=as_code(data),
        sizes=", ".join(f"{count} {split}" for split, count in sizes.items()),
        truncation=str(Truncation(cut["max_tokens"] or NO_LIMIT, cut["kept"])),
        cut=cut,
        warnings=metrics["training"]["warnings"],
        recipe=text,
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0)),
    )
