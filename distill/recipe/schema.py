"""The sections of a `Recipe`, frozen and typed, and functions that change or compare recipes.

Pydantic checks types in strict mode: `"8"` is not 8. No network, device or environment is touched.
"""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_serializer, model_validator

from distill.recipe.labels import classes_of, label_key, renamed
from distill.recipe.search_space import Sweep
from distill.recipe.section import NonEmptyStr, NotEmpty, Positive, Section
from distill.recipe.training_fields import OF_SEVERAL_LABELS

Format = Literal["torch-fp16", "onnx-fp32", "onnx-fp16", "onnx-int8", "openvino-bf16", "openvino-int8"]
Task = Literal["single_label", "multi_label"]
PRECISION = ("bf16", "fp16")  # the fields of `training` that decide it
FORMATS: tuple[Format, ...] = typing.get_args(Format)
DEFAULT_FORMATS: tuple[Format, ...] = FORMATS[:4]  # not OpenVINO, which is an optional package


class Files(Section):
    """Local files (csv, tsv, json, jsonl, parquet or arrow), relative to the working directory.

    If `validation` or `test` is not given, it is split off train. `transfer` has texts that need no labels: the teacher
    labels them for the student.
    """

    train: NonEmptyStr
    test: NonEmptyStr | None = None
    validation: NonEmptyStr | None = None
    transfer: NonEmptyStr | None = None


class HubSplits(Section):
    """The names of the splits in the Hub data set.

    If `validation` is not given, it is split off train. The labels of `transfer` are not read (e.g. IMDb's
    `unsupervised`).
    """

    train: NonEmptyStr = "train"
    test: NonEmptyStr = "test"
    validation: NonEmptyStr | None = None
    transfer: NonEmptyStr | None = None


class Data(Section):
    """Where the labeled texts come from, and how they are split, sampled and tokenized.

    If `task` is multi_label, a text has any number of labels, and none is fine. They are in one column, as a list or as
    text that `label_separator` joins, or in a column of 0 and 1 for each label, whose name is the label's.
    `label_map` renames labels, in the files and in the models that are taught by or compared with: `{POSITIVE:
    positive}`. Several labels of a file may get one name; classes of a model may not. Two text columns make pairs of
    texts, such as a premise and a hypothesis.
    """

    task: Task = "single_label"
    dataset: NonEmptyStr | None = None
    subset: NonEmptyStr | None = None
    splits: HubSplits = HubSplits()
    files: Files | None = None
    text_column: NonEmptyStr | tuple[NonEmptyStr, NonEmptyStr] = "text"
    label_column: NonEmptyStr | tuple[NonEmptyStr, ...] = "label"
    label_separator: Annotated[str, Field(min_length=1)] | None = None
    label_names: tuple[NonEmptyStr, ...] | None = None
    label_map: dict[NonEmptyStr, NonEmptyStr] | None = None
    train_samples: Positive | None = None
    validation_samples: Positive | None = None
    test_samples: Positive | None = None
    transfer_samples: Positive | None = None
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    max_tokens: Annotated[int, Field(ge=3)] = 512
    truncation: Literal["head", "tail", "head_tail"] = "head"
    padding: Literal["longest", "max_length"] = "longest"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42

    @field_validator("label_column", mode="before")
    @classmethod
    def _column_or_columns(cls, column: Any) -> Any:
        names = column if isinstance(column, list | tuple) else [column]
        if not all(isinstance(name, str) and name for name in names):
            raise ValueError(f"wants a column, or with task: multi_label a list of columns; got {column!r}")
        return tuple(column) if isinstance(column, list) else column  # strict mode accepts no list after this

    @field_validator("label_names")
    @classmethod
    def _distinct(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and len(names) < 2:
            raise ValueError(f"wants two names or more, got {list(names)}")
        if names and len(set(map(label_key, names))) < len(names):
            raise ValueError(f"the same name twice, apart from case and white space: {list(names)}")
        return names

    @field_validator("label_map")
    @classmethod
    def _keys_differ(cls, names: dict[str, str] | None) -> dict[str, str] | None:
        if names is not None and len(set(map(label_key, names))) < len(names):
            raise ValueError(f"the same label twice, apart from case and white space: {', '.join(names)}")
        return names

    @model_validator(mode="after")
    def _map_leads_to_classes(self) -> Data:
        known = set(map(label_key, self.label_names or ()))
        for former, name in (self.label_map or {}).items():
            if known and label_key(name) not in known:
                raise ValueError(f"label_map: {former!r} becomes {name!r}, which is not one of label_names")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        if (self.dataset is None) == (self.files is None):
            raise ValueError("wants either dataset (a Hub name) or files (local files)")
        names = (*self.text_columns, *self.label_columns)
        if len(set(names)) < len(names):
            raise ValueError(f"text_column and label_column: one column twice: {', '.join(names)}")
        if self.has_pairs and self.truncation != "head":
            raise ValueError(f"truncation: {self.truncation}, but of a pair the longer text is cut; leave it out")
        return self

    @model_validator(mode="after")
    def _several_labels(self) -> Data:
        is_list = not isinstance(self.label_column, str)
        if is_list and not self.has_several_labels:
            raise ValueError("label_column: a list of columns, but a text has one label; set task: multi_label")
        if is_list and len(self.label_columns) < 2:
            raise ValueError(
                f"label_column: a list wants two columns or more, got {list(self.label_columns)}; write one column of "
                "lists or joined labels without brackets"
            )
        if self.label_separator is None:
            return self
        if not self.has_several_labels:
            raise ValueError("label_separator: joins several labels, but a text has one; set task: multi_label")
        if is_list:
            raise ValueError("label_separator: joins labels in one column, but label_column has several; leave it out")
        return self

    @model_validator(mode="after")
    def _columns_are_classes(self) -> Data:
        """Check that label_names are what columns of 0 and 1 are called, apart from their order."""
        if isinstance(self.label_column, str):
            return self
        keys = list(map(label_key, self.label_column))
        if twice := next((name for name in self.label_column if keys.count(label_key(name)) > 1), None):
            raise ValueError(f"label_column: {twice!r} is there twice, apart from case and white space")
        classes = tuple(dict.fromkeys(renamed(name, self.label_map or {}) for name in self.label_column))
        if len(set(map(label_key, classes))) < 2:
            raise ValueError(f"label_map: makes all columns of label_column one label, {classes[0]!r}")
        if self.label_names and set(map(label_key, self.label_names)) != set(map(label_key, classes)):
            raise ValueError(
                f"label_names: {', '.join(self.label_names)}, but the columns of label_column are called "
                f"{', '.join(classes)}; give the same names in any order, or leave it out"
            )
        return self

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The column of the labels, or a column of 0 and 1 for each label."""
        return (self.label_column,) if isinstance(self.label_column, str) else self.label_column

    @property
    def has_several_labels(self) -> bool:
        """Whether a text may have several labels, or none."""
        return self.task == "multi_label"

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The column of the texts, or both columns of pairs."""
        return (self.text_column,) if isinstance(self.text_column, str) else self.text_column

    @property
    def has_pairs(self) -> bool:
        """Whether the model reads pairs of texts."""
        return len(self.text_columns) == 2


class Stage(Section):
    """What `teacher` and `student` have in common.

    `attention_dropout` replaces the model's own; at 0 torch can use its fused attention on a CPU. `calibrate` fits a
    temperature on the validation split after training, so that probabilities match observed accuracy. `class_weights`
    weighs the classes in the cross-entropy on labels: `balanced`, or a weight by name (1 for names that are left out).
    """

    training: Annotated[dict[str, Any], Field(default_factory=dict)]
    early_stopping_patience: Positive | None = None
    attention_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    calibrate: bool = False
    class_weights: Literal["balanced"] | dict[NonEmptyStr, Annotated[float, Field(gt=0, le=1e6)]] | None = None

    @field_validator("class_weights")
    @classmethod
    def _one_weight_each(cls, weights: Any) -> Any:
        if isinstance(weights, dict) and len(set(map(label_key, weights))) < len(weights):
            raise ValueError(f"the same class twice, apart from case and white space: {', '.join(weights)}")
        return weights

    @model_validator(mode="after")
    def _stopping_needs_evaluations(self) -> Stage:
        if self.early_stopping_patience and self.training.get("eval_strategy") == "no":
            raise ValueError("early_stopping_patience needs evaluations, but training.eval_strategy is no")
        return self


class Teacher(Stage):
    """The model to fine-tune; `pretrained: false` keeps its configuration and tokenizer, with random weights."""

    model: NonEmptyStr
    pretrained: bool = True
    output: NonEmptyStr = "./bert-teacher"


class Schedule(Section):
    """A number that is constant during training, or that changes linearly from `start` to `end`."""

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
        """Return the value after a share of training, `progress`, from 0 to 1."""
        return self.start + (self.end - self.start) * progress


def _within(low: float, high: float, rule: str) -> AfterValidator:
    def check(found: Schedule) -> Schedule:
        if not (low <= min(found.start, found.end) and max(found.start, found.end) <= high):
            raise ValueError(f"wants {rule}, got {found._shown()}")
        return found

    return AfterValidator(check)


Temperature = Annotated[Schedule, _within(math.nextafter(0, 1), math.inf, "a temperature above 0")]
Share = Annotated[Schedule, _within(0, 1, "a share from 0 to 1")]
Weight = Annotated[Schedule, _within(0, math.inf, "a weight of 0 or more")]


class Decoupled(Section):
    """The weights of decoupled knowledge distillation (Zhao et al. 2022, equation 7: alpha and beta)."""

    target_weight: Annotated[float, Field(ge=0)] = 1.0
    other_weight: Annotated[float, Field(ge=0)] = 8.0


class HiddenStates(Section):
    """Match hidden states, layer by layer; this runs the teacher at every step.

    `teacher_layers` names the teacher layer that each student layer learns from (from 0; default: evenly spread, and
    the last learns from the last). If the widths differ, a projection is trained too, and dropped after training.
    """

    distance: Literal["cosine", "mse"] = "cosine"
    weight: Weight = Schedule(start=1.0, end=1.0)
    teacher_layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], NotEmpty] | None = None


class AttentionRelations(Section):
    """Match the last layer's relations among queries, keys and values (MiniLM v2); this runs the teacher at every step.

    `heads` is the number of relation heads (default: the teacher's attention heads). It must divide both widths.
    """

    weight: Weight = Schedule(start=1.0, end=1.0)
    heads: Positive | None = None


class Loss(Section):
    """soft_weight * soft loss + (1 - soft_weight) * cross-entropy; texts without a label have only the soft loss.

    `soft` is the soft loss: T^2 * KL on soft targets (Hinton et al. 2015), squared distance of logits (Ba and Caruana
    2014), or decoupled (Zhao et al. 2022). `hidden_states` and `attention_relations` are added if they are given.
    """

    soft: Literal["soft_targets", "logit_mse", "decoupled"] = "soft_targets"
    temperature: Temperature = Schedule(start=2.0, end=2.0)
    soft_weight: Share = Schedule(start=0.5, end=0.5)
    decoupled: Decoupled = Decoupled()
    hidden_states: HiddenStates | None = None
    attention_relations: AttentionRelations | None = None

    @property
    def runs_teacher(self) -> bool:
        """Whether the teacher must run at every step, because its hidden states are too large to keep."""
        return self.hidden_states is not None or self.attention_relations is not None

    @property
    def is_scheduled(self) -> bool:
        """Whether the loss changes during training, so that its values cannot be compared."""
        weights = [part.weight for part in (self.hidden_states, self.attention_relations) if part]
        return any(schedule.start != schedule.end for schedule in (self.temperature, self.soft_weight, *weights))


class Ngrams(Section):
    """A student without layers: it averages the embeddings of a text's tokens and of its n-grams of tokens.

    `longest` is the number of tokens of the longest n-gram, `table` the number of rows that all n-grams share, and
    `width` the length of a row. It reads whole texts, unless `max_tokens` is given. With `start: counts`, training
    starts from how often each n-gram stands in texts of each class. `tokenizer` names a model whose tokens to use
    (default: the teacher).
    """

    longest: Annotated[int, Field(ge=1, le=8)] = 2
    table: Annotated[int, Field(ge=1, le=2**28)] = 2**20
    width: Annotated[int, Field(ge=1, le=4_096)] = 8
    start: Literal["counts", "random"] = "counts"
    max_tokens: Annotated[int, Field(ge=3)] | None = None
    tokenizer: NonEmptyStr | None = None


def checked_shape(shape: str) -> str:
    """Return a shape if it is BATCHxTOKENS; raise `ValueError` if not."""
    if not re.fullmatch(r"[1-9]\d{0,5}x[1-9]\d{0,5}", shape):
        raise ValueError(f"wants BATCHxTOKENS such as 8x128, got {shape!r}")
    return shape


BUDGETS = ("latency_ms", "size_mb", "speedup")


class Prune(Section):
    """A student cut out of the teacher, or of the classifier `model`, as large as a budget for onnx-int8 allows.

    The budget is the largest `latency_ms` (median) or `size_mb` of the exported file, or the least `speedup` over the
    whole model. Latency is measured on this machine at `shape` (default: the first of benchmark.shapes), with
    benchmark.threads. A list of budgets makes a student for each.
    """

    latency_ms: float | tuple[float, ...] | None = None
    size_mb: float | tuple[float, ...] | None = None
    speedup: float | tuple[float, ...] | None = None
    shape: NonEmptyStr | None = None
    model: NonEmptyStr | None = None

    @field_validator(*BUDGETS, mode="before")
    @classmethod
    def _numbers(cls, given: Any, info: ValidationInfo) -> Any:
        least, is_list = 1 if info.field_name == "speedup" else 0, isinstance(given, (list, tuple))
        values = given if is_list else [] if given is None else [given]
        if (is_list and not values) or not all(type(one) in (int, float) and least < one < math.inf for one in values):
            raise ValueError(f"wants a number above {least}, or a list of such numbers, got {given!r}")
        if len({f"{one:g}" for one in values}) < len(values):
            raise ValueError(f"wants budgets that differ, got {given!r}")
        return tuple(map(float, values)) if len(values) > 1 else values[0] if values else None

    @field_validator("shape")
    @classmethod
    def _shape(cls, shape: str | None) -> str | None:
        return None if shape is None else checked_shape(shape)

    @model_validator(mode="after")
    def _one_budget(self) -> Prune:
        if sum(getattr(self, key) is not None for key in BUDGETS) != 1:
            raise ValueError("wants one of latency_ms, size_mb and speedup")
        if self.size_mb and self.shape:
            raise ValueError("shape: a size does not depend on it; leave it out")
        return self

    @property
    def budgets(self) -> tuple[str, tuple[float, ...]]:
        """The key of the budget, and its values: one, unless the recipe has a list of them."""
        key = next(key for key in BUDGETS if getattr(self, key) is not None)
        given = getattr(self, key)
        return key, given if isinstance(given, tuple) else (given,)

    @property
    def in_words(self) -> str:
        """The budget, or the budgets: "1 or 2 ms at 1x128"."""
        key, budgets = self.budgets
        unit = {"latency_ms": "ms", "size_mb": "MB", "speedup": "times the speed"}[key]
        return f"{' or '.join(f'{one:g}' for one in budgets)} {unit}{f' at {self.shape}' if self.shape else ''}"

    @property
    def is_several(self) -> bool:
        """Whether the recipe has a list of budgets, so that there are several students (see `each_budget`)."""
        return len(self.budgets[1]) > 1


# Defaults of an n-gram student: a step moves only the rows that it reads, and costs the same for 8 texts or 32.
NGRAM_TRAINING = {"learning_rate": 1e-2, "per_device_train_batch_size": 32}


FEWEST_TOKENS = 100  # of a vocabulary: an alphabet and the special tokens


class Student(Stage):
    """The small model: a pretrained `model`, `layers` of the teacher, a smaller `config` of it, `ngrams`, or `prune`.

    `layers` is a number of layers, evenly spread, or a list of them, from 0. `config` changes sizes in the teacher's
    configuration (hidden_size: 192) and starts from random weights. `teacher_weights` weights several teachers.
    `vocabulary` keeps only the tokens that its texts use: as many as make up this share of all tokens (0.9999), or this
    number of them. `control` also trains the same student for the same number of steps on the labels alone.
    """

    model: NonEmptyStr | None = None
    layers: Positive | tuple[Annotated[int, Field(ge=0)], ...] | None = None
    config: dict[NonEmptyStr, Any] | None = None
    ngrams: Ngrams | None = None
    prune: Prune | None = None
    output: NonEmptyStr = "./distilbert-student"
    loss: Loss = Loss()
    teacher_weights: Annotated[tuple[Annotated[float, Field(gt=0)], ...], NotEmpty] | None = None
    vocabulary: int | float | None = None
    control: bool = False
    calibrate: bool = True

    @field_validator("layers", mode="before")
    @classmethod
    def _rising(cls, layers: Any) -> Any:
        is_list = isinstance(layers, list) and all(type(layer) is int and layer >= 0 for layer in layers)
        if layers is not None and not is_list and not (type(layers) is int and layers > 0):
            raise ValueError(f"wants a number of layers, or a list of the teacher's layers from 0, got {layers!r}")
        if is_list and (not layers or layers != sorted(set(layers))):
            raise ValueError(f"wants one or more layers in rising order, none twice, got {layers}")
        return tuple(layers) if is_list else layers  # after a "before" validator, strict mode accepts no list here

    @field_validator("vocabulary")
    @classmethod
    def _share_or_number(cls, vocabulary: float | None) -> float | None:
        if vocabulary is None or (type(vocabulary) is float and 0 < vocabulary <= 1):
            return vocabulary
        if type(vocabulary) is int and vocabulary >= FEWEST_TOKENS:
            return vocabulary
        raise ValueError(
            f"wants a share of the texts' tokens, such as 0.9999 (all: 1.0), or a number of tokens, at least "
            f"{FEWEST_TOKENS}; got {vocabulary!r}"
        )

    @model_validator(mode="after")
    def _one_vocabulary(self) -> Student:
        if self.vocabulary is not None and self.loss.runs_teacher:
            raise ValueError(
                "vocabulary: loss.hidden_states and attention_relations need the teacher's token ids; leave it out"
            )
        if self.vocabulary is not None and self.ngrams:
            raise ValueError("vocabulary: ngrams has a table of its own (ngrams.table); leave it out")
        return self

    @model_validator(mode="after")
    def _one_origin(self) -> Student:
        origins = (self.model, self.layers, self.config, self.ngrams, self.prune)
        if sum(origin is not None for origin in origins) != 1:
            raise ValueError(
                "wants one of model (a pretrained one), layers (of the teacher), config (sizes to change in the "
                "teacher's), ngrams (a model without layers) and prune (a budget)"
            )
        return self

    @model_validator(mode="after")
    def _prune_chooses_layers(self) -> Student:
        hidden = self.loss.hidden_states
        if self.prune and hidden and hidden.teacher_layers:
            raise ValueError(
                "loss.hidden_states.teacher_layers: names a layer for each of the student's, but prune chooses how "
                "many it has; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _training_suits_a_table(self) -> Student:
        for name, value in NGRAM_TRAINING.items() if self.ngrams else ():
            self.training.setdefault(name, value)
        return self

    @model_validator(mode="after")
    def _ngrams_have_no_layers(self) -> Student:
        if not self.ngrams:
            return self
        if self.loss.runs_teacher:
            raise ValueError("loss.hidden_states and loss.attention_relations need layers, but ngrams has none")
        if self.attention_dropout:
            raise ValueError("attention_dropout: ngrams has no attention; leave it out")
        if named := [name for name in ("gradient_checkpointing", "fsdp") if self.training.get(name)]:
            raise ValueError(f"training.{named[0]}: works layer by layer, but ngrams has no layers; leave it out")
        return self


class Export(Section):
    """Formats to write, and the bounds on the validation texts that each format must meet.

    `max_accuracy_drop` is the largest loss of accuracy (0.01 is one point). `min_agreement` is the share of texts that
    must keep the label of the model.
    """

    formats: Annotated[tuple[Format, ...], NotEmpty] = DEFAULT_FORMATS
    max_accuracy_drop: Annotated[float, Field(ge=0, le=1)] = 0.01
    min_agreement: Annotated[float, Field(ge=0, le=1)] = 0.95


class Benchmark(Section):
    """Shapes (BATCHxTOKENS) at which latency is measured, how often, and with how many CPU threads (default: all)."""

    shapes: Annotated[tuple[str, ...], NotEmpty] = ("1x128", "8x128", "1x512")
    rounds: Annotated[int, Field(ge=5)] = 30
    threads: Positive | None = None

    @field_validator("shapes")
    @classmethod
    def _shapes(cls, shapes: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(checked_shape, shapes))


class Card(Section):
    """What a model card says that no file tells: the language of the texts and the license of the model."""

    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$")] | None = None
    license: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")] | None = None


class Recipe(Section):
    """A whole recipe: `data` is required, `teacher` and `student` only by the commands that train them."""

    data: Data
    teacher: Teacher | None = None
    student: Student | None = None
    baseline: bool = True
    export: Export = Export()
    benchmark: Benchmark = Benchmark()
    card: Card = Card()
    sweep: Sweep | None = None

    @model_validator(mode="after")
    def _swept_stage_is_there(self) -> Recipe:
        if self.sweep and getattr(self, self.sweep.stage) is None:
            raise ValueError(f"sweep.keys: belong to the {self.sweep.stage}, but the recipe has no {self.sweep.stage}")
        return self

    @model_validator(mode="after")
    def _weights_are_of_classes(self) -> Recipe:
        names = self.data.label_names
        for stage in ("teacher", "student"):
            weights = getattr(getattr(self, stage), "class_weights", None)
            for name in weights if names and isinstance(weights, dict) else ():
                if classes_of([name], names, indices=False)[name] is None:
                    raise ValueError(f"{stage}.class_weights: {name!r} is not one of data.label_names")
        return self

    @model_validator(mode="after")
    def _padding_has_an_end(self) -> Recipe:
        ngrams = self.student and self.student.ngrams
        if ngrams and not ngrams.max_tokens and self.data.padding == "max_length":
            raise ValueError("data.padding: max_length, but student.ngrams reads whole texts; give its max_tokens")
        return self

    @model_validator(mode="after")
    def _budget_is_of_a_format(self) -> Recipe:
        if not (self.student and self.student.prune):
            return self
        if "onnx-int8" not in self.export.formats:
            raise ValueError("student.prune: its budget is for onnx-int8, which export.formats leaves out; add it")
        if self.sweep and self.sweep.stage == "student":
            raise ValueError(
                "sweep.keys: belong to a student with prune, whose size is measured on this machine, so trials could "
                "not be repeated; search with student.layers"
            )
        return self

    @model_validator(mode="after")
    def _metric_is_of_the_task(self) -> Recipe:
        for stage in () if self.data.has_several_labels else ("teacher", "student"):
            training = getattr(getattr(self, stage), "training", {})
            metric = str(training.get("metric_for_best_model", "")).removeprefix("eval_")
            if metric in OF_SEVERAL_LABELS:
                raise ValueError(
                    f"{stage}.training.metric_for_best_model: {metric}, but it is for texts with several labels, and "
                    "data.task is single_label"
                )
        return self

    @model_validator(mode="after")
    def _target_is_one_class(self) -> Recipe:
        if self.data.has_several_labels and self.student and self.student.loss.soft == "decoupled":
            raise ValueError(
                "student.loss.soft: decoupled, but it is for texts of one class, and data.task is multi_label; use "
                "soft_targets or logit_mse"
            )
        return self

    @model_validator(mode="after")
    def _transfer_is_learned_from(self) -> Recipe:
        source = self.data.files or self.data.splits
        if source.transfer and self.student and not self.student.loss.runs_teacher:
            weight = self.student.loss.soft_weight
            if weight.start == weight.end == 0:
                raise ValueError("student.loss.soft_weight: 0, but transfer texts have only the soft loss")
        return self


def with_precision(recipe: Recipe, stage: str, settled: Mapping[str, Any]) -> Recipe:
    """Return the recipe with the precision in `settled`, if the recipe has this stage and leaves it open there."""
    section = getattr(recipe, stage)
    chosen = {name: settled[name] for name in PRECISION if name in settled}
    if section is None or not chosen or any(name in section.training for name in PRECISION):
        return recipe
    return recipe.model_copy(update={stage: section.model_copy(update={"training": {**section.training, **chosen}})})


def as_settled(recipe: Recipe, found: Recipe) -> Recipe:
    """Return the recipe with any open precision taken from `found`, the recipe kept in a run folder."""
    for stage in ("teacher", "student"):
        if section := getattr(found, stage):
            recipe = with_precision(recipe, stage, section.training)
    return recipe


def differences(wanted: Section | None, found: Section | None) -> dict[str, str]:
    """Return both values, in words, of each dotted key in which two sections differ."""
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
    """Return the recipe with local paths cut to their last part, so that it can be published."""
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
            if stage.model and (Path(stage.model).is_absolute() or Path(stage.model).exists()):  # not a Hub name
                paths["model"] = Path(stage.model).name
            updates[name] = stage.model_copy(update=paths | _with_sources(stage, lambda path: path.name))
    return recipe.model_copy(update=updates)


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Return the recipe with absolute paths for data files and local models, so that it works in any directory."""
    updates: dict[str, Any] = {}
    if recipe.data.files:
        files = {k: str(Path(v).absolute()) for k, v in recipe.data.files.model_dump(exclude_none=True).items()}
        updates["data"] = recipe.data.model_copy(update={"files": Files(**files)})
    elif recipe.data.dataset and Path(recipe.data.dataset).is_dir():
        updates["data"] = recipe.data.model_copy(update={"dataset": str(Path(recipe.data.dataset).absolute())})
    for name in ("teacher", "student"):
        stage = getattr(recipe, name)
        if stage is None:
            continue
        paths = _with_sources(stage, lambda path: str(path.absolute()))
        if stage.model and Path(stage.model).is_dir():
            paths["model"] = str(Path(stage.model).absolute())
        if paths:
            updates[name] = stage.model_copy(update=paths)
    return recipe.model_copy(update=updates)


def _with_sources(stage: Stage, changed: Callable[[Path], str]) -> dict[str, Any]:
    """Return the update of a student made of another model in a local folder, of which `changed` is written."""
    updates = {}
    for section, key in (("ngrams", "tokenizer"), ("prune", "model")):
        settings = getattr(stage, section, None)
        name = settings and getattr(settings, key)
        if name and Path(name).is_dir():
            updates[section] = settings.model_copy(update={key: changed(Path(name))})
    return updates
