"""Train the teacher: fine-tune a pretrained encoder on the labels."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.data.encoding import vocabulary_of
from distill.errors import RecipeError
from distill.models.config import share_padding
from distill.models.loading import load_classifier, load_config, load_tokenizer
from distill.models.names import named_by
from distill.recipe.schema import Recipe, Task, Teacher
from distill.storage.run_folder import RunFolder
from distill.training.origin import base_fingerprint, origin_of
from distill.training.run import fit, open_training
from distill.training.tokens import tokenise_split


def teacher_of(recipe: Recipe) -> Teacher:
    """Return the recipe's `teacher` section; raise `RecipeError` if it has none."""
    if recipe.teacher is None:
        raise RecipeError("teacher: missing, but this command trains a teacher")
    return recipe.teacher


def train_teacher(
    recipe: Recipe, folder: RunFolder, *, resume: bool = False, overwrite: bool = False, device: str = "auto"
) -> RunFolder:
    """Fine-tune the recipe's teacher and return its run folder."""
    settings = teacher_of(recipe)
    with named_by("teacher.model"):
        architecture = load_config(settings.model).model_type
    training = open_training(
        recipe, "teacher", folder, [architecture], resume=resume, overwrite=overwrite, device=device
    )
    recipe, splits = training.recipe, training.splits
    settings = teacher_of(recipe)
    model, tokenizer = new_teacher(
        settings, splits.label_names, splits.task, max_tokens=recipe.data.max_tokens, seed=training.arguments.seed
    )
    base = base_fingerprint(settings.model, tokenizer, pretrained=settings.pretrained)
    with training.clock("tokenising"):
        rows = tokenise_split("train", splits.train, tokenizer, training.truncation)
    origin = origin_of(splits, training.device, **{"teacher.model": base})
    return fit(training, model, tokenizer, rows, origin=origin, parents={"model": settings.model})


def new_teacher(
    settings: Teacher, label_names: Sequence[str], task: Task, *, max_tokens: int, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the teacher before training, and its tokenizer."""
    with named_by("teacher.model"):
        tokenizer = load_tokenizer(settings.model)
    model = load_classifier(
        settings.model,
        label_names,
        task=task,
        seed=seed,
        max_tokens=max_tokens,
        vocabulary=vocabulary_of(tokenizer, added=False),
        pretrained=settings.pretrained,
        attention_dropout=settings.attention_dropout,
    )
    share_padding(model.config, tokenizer)
    return model, tokenizer
