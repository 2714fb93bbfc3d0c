"""What a run needs to know, as a frozen, typed `Recipe`; no network, device or environment is touched.

Types are checked through pydantic in strict mode: `"8"` is not 8.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_serializer, model_validator

from distill.recipe.labels import label_key
from distill.recipe.search_space import Sweep
from distill.recipe.section import Line, NotEmpty, Positive, Section

Format = Literal["torch-fp16", "onnx-fp32", "onnx-fp16", "onnx-int8", "openvino-bf16", "openvino-int8"]
PRECISION = ("bf16", "fp16")  # the fields of a training section that settle it
FORMATS: tuple[Format, ...] = typing.get_args(Format)
DEFAULT_FORMATS: tuple[Format, ...] = FORMATS[:4]  # OpenVINO is an extra


class Files(Section):
    """Local files, csv, tsv, json, jsonl, parquet or arrow, paths relative to the working directory.

    `transfer` holds texts that need no labels: the teacher labels them for the student.
    """

    train: Line
    test: Line
    validation: Line | None = None
    transfer: Line | None = None


class HubSplits(Section):
    """The names that the Hub data set gives its splits; `validation` is carved out of train where there is none.

    `transfer` is a split whose labels are not read (IMDb's `unsupervised`).
    """

    train: Line = "train"
    test: Line = "test"
    validation: Line | None = None
    transfer: Line | None = None


class Data(Section):
    """Where the labelled texts come from, and how they are cut, sampled and tokenised."""

    dataset: Line | None = None
    subset: Line | None = None
    splits: HubSplits = HubSplits()
    files: Files | None = None
    text_column: Line = "text"
    label_column: Line = "label"
    label_names: tuple[Line, ...] | None = None
    train_samples: Positive | None = None
    validation_samples: Positive | None = None
    test_samples: Positive | None = None
    transfer_samples: Positive | None = None
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    max_tokens: Annotated[int, Field(ge=3)] = 512
    padding: Literal["longest", "max_length"] = "longest"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42

    @field_validator("label_names")
    @classmethod
    def _distinct(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and len(names) < 2:
            raise ValueError(f"wants two names or more, got {list(names)}")
        if names and len(set(map(label_key, names))) < len(names):
            raise ValueError(f"the same name stands in it twice, but for case and white space: {list(names)}")
        return names

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        if (self.dataset is None) == (self.files is None):
            raise ValueError("wants dataset (a Hub name) or files (local ones), one of the two")
        if self.text_column == self.label_column:
            raise ValueError(f"text_column and label_column are both {self.text_column!r}")
        return self


class Stage(Section):
    """What training a teacher and training a student have in common.

    `attention_dropout` replaces the model's own; at 0 torch can use its fused attention on a CPU.
    `calibrate` fits a temperature on validation once trained, so that probabilities mean what they say.
    """

    training: Annotated[dict[str, Any], Field(default_factory=dict)]
    early_stopping_patience: Positive | None = None
    attention_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    calibrate: bool = False

    @model_validator(mode="after")
    def _stopping_needs_evaluations(self) -> Stage:
        if self.early_stopping_patience and self.training.get("eval_strategy") == "no":
            raise ValueError("early_stopping_patience needs evaluations, but training.eval_strategy is no")
        return self


class Teacher(Stage):
    """The model to fine-tune; `pretrained: false` keeps its configuration and tokenizer, with random weights."""

    model: Line
    pretrained: bool = True
    output: Line = "./bert-teacher"


class Schedule(Section):
    """A number for the whole of training, or one that moves from `start` to `end` in a straight line."""

    start: float
    end: float

    @model_validator(mode="before")
    @classmethod
    def _constant(cls, value: Any) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53
        if not is_number and not isinstance(value, dict):
            raise ValueError(f"wants a number, or {{start: ..., end: ...}}, got {value!r}")
        return {"start": value, "end": value} if is_number else value

    @model_serializer
    def _shown(self) -> float | dict[str, float]:
        return self.start if self.start == self.end else {"start": self.start, "end": self.end}

    def at(self, progress: float) -> float:
        """Return the value once `progress` of training, from 0 to 1, is done."""
        return self.start + (self.end - self.start) * progress


class Temperature(Schedule):
    """A `Schedule` above 0."""

    @model_validator(mode="after")
    def _positive(self) -> Temperature:
        if min(self.start, self.end) <= 0:
            raise ValueError(f"wants a temperature above 0, got {self._shown()}")
        return self


class Share(Schedule):
    """A `Schedule` from 0 to 1."""

    @model_validator(mode="after")
    def _bounded(self) -> Share:
        if not (0 <= self.start <= 1 and 0 <= self.end <= 1):
            raise ValueError(f"wants a share from 0 to 1, got {self._shown()}")
        return self


class Weight(Schedule):
    """A `Schedule` that is never negative."""

    @model_validator(mode="after")
    def _not_negative(self) -> Weight:
        if min(self.start, self.end) < 0:
            raise ValueError(f"wants a weight of 0 or more, got {self._shown()}")
        return self


class Decoupled(Section):
    """The weights of decoupled knowledge distillation (Zhao et al. 2022, equation 7: alpha and beta)."""

    target_weight: Annotated[float, Field(ge=0)] = 1.0
    other_weight: Annotated[float, Field(ge=0)] = 8.0


class HiddenStates(Section):
    """Match hidden states, layer by layer; the teacher then runs at every step.

    `teacher_layers` names, for each student layer, the teacher layer whose output it learns (from 0; default: evenly
    spread, last to last). A projection, trained along and then dropped, joins widths that differ.
    """

    distance: Literal["cosine", "mse"] = "cosine"
    weight: Weight = Weight(start=1.0, end=1.0)
    teacher_layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], NotEmpty] | None = None


class AttentionRelations(Section):
    """Match the last layer's relations among queries, keys and values (MiniLM v2); the teacher runs at every step.

    `heads` is the number of relation heads; both widths must divide by it. Default: the teacher's attention heads.
    """

    weight: Weight = Weight(start=1.0, end=1.0)
    heads: Positive | None = None


class Loss(Section):
    """soft_weight * soft loss + (1 - soft_weight) * cross-entropy; a text without a label takes the soft loss alone.

    `soft` is the soft loss: T^2 * KL on soft targets (Hinton et al. 2015), squared distance of logits (Ba and Caruana
    2014), or decoupled (Zhao et al. 2022). `hidden_states` and `attention_relations` are added where they are given.
    """

    soft: Literal["soft_targets", "logit_mse", "decoupled"] = "soft_targets"
    temperature: Temperature = Temperature(start=2.0, end=2.0)
    soft_weight: Share = Share(start=0.5, end=0.5)
    decoupled: Decoupled = Decoupled()
    hidden_states: HiddenStates | None = None
    attention_relations: AttentionRelations | None = None

    @property
    def runs_teacher(self) -> bool:
        """Whether the teacher must run at every step, since its hidden states are too many to keep."""
        return self.hidden_states is not None or self.attention_relations is not None

    @property
    def is_scheduled(self) -> bool:
        """Whether the loss itself changes during training, so that its values do not compare."""
        weights = [part.weight for part in (self.hidden_states, self.attention_relations) if part]
        return any(schedule.start != schedule.end for schedule in (self.temperature, self.soft_weight, *weights))


class Student(Stage):
    """The small model: a pretrained one by name or folder, layers of the teacher, or the teacher's shape made smaller.

    `layers` is how many, evenly spread, or which ones, from 0. `config` changes sizes in the teacher's configuration
    (hidden_size: 192) and starts from random weights. `teacher_weights` is how much each of several teachers counts.
    `control` also trains the same student for as many steps on the labels alone.
    """

    model: Line | None = None
    layers: Positive | tuple[Annotated[int, Field(ge=0)], ...] | None = None
    config: dict[Line, Any] | None = None
    output: Line = "./distilbert-student"
    loss: Loss = Loss()
    teacher_weights: Annotated[tuple[Annotated[float, Field(gt=0)], ...], NotEmpty] | None = None
    control: bool = False
    calibrate: bool = True

    @field_validator("layers", mode="before")
    @classmethod
    def _rising(cls, layers: Any) -> Any:
        is_list = isinstance(layers, list) and all(type(layer) is int and layer >= 0 for layer in layers)
        if layers is not None and not is_list and not (type(layers) is int and layers > 0):
            raise ValueError(f"wants a number of layers, or a list of the teacher's layers from 0, got {layers!r}")
        if is_list and (not layers or layers != sorted(set(layers))):
            raise ValueError(f"wants one or more layers, rising, each once, got {layers}")
        return tuple(layers) if is_list else layers  # a validator that runs first ends JSON mode's leave to pass lists

    @model_validator(mode="after")
    def _one_origin(self) -> Student:
        origins = {"model": self.model, "layers": self.layers, "config": self.config}
        if sum(origin is not None for origin in origins.values()) != 1:
            raise ValueError(
                "wants model (a pretrained one), layers (of the teacher) or config (sizes to change in the teacher's), "
                "one of the three"
            )
        return self


class Export(Section):
    """Formats to write, and what one may cost on the validation texts before it counts as failed.

    `max_accuracy_drop` is in accuracy, `min_agreement` the share of texts that keep the label the model gave them.
    """

    formats: Annotated[tuple[Format, ...], NotEmpty] = DEFAULT_FORMATS
    max_accuracy_drop: Annotated[float, Field(ge=0, le=1)] = 0.01
    min_agreement: Annotated[float, Field(ge=0, le=1)] = 0.95


class Benchmark(Section):
    """Shapes (BATCHxTOKENS) at which latency is measured, how often, on how many CPU threads (default: all)."""

    shapes: Annotated[tuple[str, ...], NotEmpty] = ("1x128", "8x128", "1x512")
    rounds: Annotated[int, Field(ge=5)] = 30
    threads: Positive | None = None

    @field_validator("shapes")
    @classmethod
    def _shapes(cls, shapes: tuple[str, ...]) -> tuple[str, ...]:
        for shape in shapes:
            if not re.fullmatch(r"[1-9]\d{0,5}x[1-9]\d{0,5}", shape):
                raise ValueError(f"wants BATCHxTOKENS such as 8x128, got {shape!r}")
        return shapes


class Recipe(Section):
    """Everything a run needs to know; `data` always, `teacher` and `student` for the commands that train them."""

    data: Data
    teacher: Teacher | None = None
    student: Student | None = None
    export: Export = Export()
    benchmark: Benchmark = Benchmark()
    sweep: Sweep | None = None

    @model_validator(mode="after")
    def _swept_stage_is_there(self) -> Recipe:
        if self.sweep and getattr(self, self.sweep.stage) is None:
            raise ValueError(f"sweep.keys: are of the {self.sweep.stage}, which the recipe has not")
        return self

    @model_validator(mode="after")
    def _transfer_is_learned_from(self) -> Recipe:
        source = self.data.files or self.data.splits
        if source.transfer and self.student and not self.student.loss.runs_teacher:
            weight = self.student.loss.soft_weight
            if weight.start == weight.end == 0:
                raise ValueError("student.loss.soft_weight: 0, but transfer texts have nothing but the soft loss")
        return self


def with_precision(recipe: Recipe, stage: str, settled: Mapping[str, Any]) -> Recipe:
    """Return the recipe with the precision that `settled` names, if a stage of that name leaves it open."""
    section = getattr(recipe, stage)
    chosen = {name: settled[name] for name in PRECISION if name in settled}
    if section is None or not chosen or any(name in section.training for name in PRECISION):
        return recipe
    return recipe.model_copy(update={stage: section.model_copy(update={"training": {**section.training, **chosen}})})


def as_settled(recipe: Recipe, found: Recipe) -> Recipe:
    """Return the recipe with what it leaves open settled as in `found`, the recipe that a run keeps."""
    for stage in ("teacher", "student"):
        if section := getattr(found, stage):
            recipe = with_precision(recipe, stage, section.training)
    return recipe


def differences(wanted: Section | None, found: Section | None) -> dict[str, str]:
    """Return in words, for each dotted key in which two sections differ, its value in either."""
    ours, theirs = dict(_flat(wanted)), dict(_flat(found))
    keys = [*ours, *(key for key in theirs if key not in ours)]
    return {key: f"{ours.get(key)!r} now, {theirs.get(key)!r} then" for key in keys if ours.get(key) != theirs.get(key)}


def _flat(section: Section | None) -> Iterator[tuple[str, Any]]:
    inner = [((), section.model_dump(mode="json"))] if section else []
    while inner:
        at, value = inner.pop(0)
        if isinstance(value, dict):
            inner = [((*at, str(key)), one) for key, one in value.items()] + inner
        else:
            yield ".".join(at), value


def with_last_names(recipe: Recipe) -> Recipe:
    """Return the recipe with data files and local folders cut to their last name, so that it can be published."""
    updates: dict[str, Any] = {}
    if recipe.data.files:
        files = {split: Path(path).name for split, path in recipe.data.files.model_dump(exclude_none=True).items()}
        updates["data"] = recipe.data.model_copy(update={"files": Files(**files)})
    elif recipe.data.dataset and Path(recipe.data.dataset).is_absolute():
        updates["data"] = recipe.data.model_copy(update={"dataset": Path(recipe.data.dataset).name})
    for name in ("teacher", "student"):
        stage = getattr(recipe, name)
        if stage:
            paths = {"output": Path(stage.output).name}
            if stage.model and (Path(stage.model).is_absolute() or Path(stage.model).exists()):  # no name of the Hub's
                paths["model"] = Path(stage.model).name
            updates[name] = stage.model_copy(update=paths)
    return recipe.model_copy(update=updates)


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Return the recipe with data files and local model folders made absolute, so that it runs from anywhere."""
    updates: dict[str, Any] = {}
    if recipe.data.files:
        files = {k: str(Path(v).absolute()) for k, v in recipe.data.files.model_dump(exclude_none=True).items()}
        updates["data"] = recipe.data.model_copy(update={"files": Files(**files)})
    elif recipe.data.dataset and Path(recipe.data.dataset).is_dir():
        updates["data"] = recipe.data.model_copy(update={"dataset": str(Path(recipe.data.dataset).absolute())})
    for name in ("teacher", "student"):
        stage = getattr(recipe, name)
        if stage and stage.model and Path(stage.model).is_dir():
            updates[name] = stage.model_copy(update={"model": str(Path(stage.model).absolute())})
    return recipe.model_copy(update=updates)
