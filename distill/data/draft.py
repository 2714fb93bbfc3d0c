"""Draft a recipe for somebody's own table: which columns, which classes, how long the texts are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from transformers import PreTrainedTokenizerBase

from distill.data.encoding import Truncation, encode
from distill.data.inspection import FEW, RARE
from distill.data.label_sets import YES_OR_NO, shown_value
from distill.data.splits import Splits, drawn, label_counts, load_splits
from distill.data.tables import TableFile
from distill.data.texts import check_file, not_texts
from distill.errors import DataError, printable
from distill.recipe.labels import LISTED, SURELY_JOINED, WHOLE, joined, separator_of
from distill.recipe.schema import Data, Files, Task

PAIR_NAMES = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"), ("text1", "text2"),
    ("text_a", "text_b"), ("question", "sentence"), ("query", "document"), ("question", "passage"),
)  # fmt: skip
TEXT_NAMES = ("text", "sentence", "review", "content", "document", "comment", "message", "body", "tweet", "question")
LABEL_NAMES = (
    "label", "labels", "class", "category", "target", "sentiment", "intent", "topic", "stars", "rating", "y",
    "categories", "topics", "intents", "emotions", "genres", "tags",
)  # fmt: skip
LOOKED_AT = 2_000  # rows, to choose columns
MOST_CLASSES = 200
MEASURED = 2_000  # texts, for their lengths
TOKENS_PER_WORD = 1.4  # of English with BERT's word pieces, if no tokenizer is at hand
LONGEST = 512  # tokens of BERT
STEP = 32  # to which max_tokens is rounded up
MARK = "\x1f# "  # before a comment; JSON escapes this character in values
MUCH = 0.05  # of the texts cut: then the end is read too, because it often holds the verdict


@dataclass(frozen=True)
class Labels:
    """The column or columns of the labels, and how many a text has: what speaks for it, and when it would be wrong."""

    column: str | tuple[str, ...]
    task: Task = "single_label"
    separator: str | None = None
    reason: str = ""
    doubt: str = ""


@dataclass(frozen=True)
class Draft:
    """A recipe as text, with comments, and what looks wrong with the data."""

    text: str
    concerns: tuple[str, ...]


def draft(
    train: str,
    test: str | None,
    *,
    teacher: str,
    student: str,
    text_columns: Sequence[str] = (),
    label_column: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Draft:
    """Return a recipe for the tables `train` and `test`, in which `teacher` and `student` name the models.

    Columns that are not named are chosen by their names and values. `tokenizer` measures the texts; without one their
    length is estimated from the number of words. Raises `DataError` if a column cannot be told, with their names.
    """
    columns = _columns(train)
    asked = [("--text-column", name) for name in text_columns]
    for option, name in [*asked, *([("--label-column", label_column)] if label_column else [])]:
        if name not in columns:
            raise DataError(f"{train}: {option}: no column {name!r}, only {', '.join(columns)}")
    text_columns = tuple(text_columns) or _text_columns(columns, train)
    labels = _labels(columns, text_columns, label_column, train)
    text_column = text_columns[0] if len(text_columns) == 1 else text_columns
    data = Data(
        files=Files(train=train, test=test), text_column=text_column, task=labels.task, label_column=labels.column,
        label_separator=labels.separator,
    )  # fmt: skip
    splits = load_splits(data)
    if len(splits.label_names) > MOST_CLASSES:
        raise DataError(
            f"{train}: {labels.column!r} has {len(splits.label_names)} different values, which is too many for classes",
            hint="--label-column NAME names another",
        )
    lengths = _lengths(splits, tokenizer)
    max_tokens = int(min(LONGEST, -(-np.percentile(lengths, 99) // STEP) * STEP))
    cut = float((lengths > max_tokens).mean())
    counts = label_counts(splits.train, len(splits.label_names))
    several = labels.task == "multi_label"
    concerns = list(splits.notes)
    if labels.reason:
        concerns.append("; ".join(filter(None, [labels.reason, labels.doubt])))
    if leaks := sum(splits.leaks.values()):
        concerns.append(f"{leaks} training texts are also in validation or test; training drops them")
    rare = {name: int(count) for name, count in zip(splits.label_names, counts, strict=True)}
    rare = {name: count for name, count in rare.items() if count < (FEW if several else RARE * counts.sum())}
    if rare:
        few = ", ".join(f"{name} ({count})" for name, count in list(rare.items())[:3])
        concerns.append(f"rare {'labels' if several else 'classes'}: {few} of {len(splits.train)} training texts")
    estimated = "" if tokenizer else " (estimated from words)"
    label_map = ""
    if all(WHOLE.fullmatch(name) for name in splits.label_names):
        label_map = f"\n{MARK}label_map: {{{_shown(splits.label_names[0])}: NAME, ...}} gives the numbers names"
    text = TEMPLATE.format(
        name=printable(Path(train).name),
        train=_shown(train),
        test=f"\n    test: {_shown(test)}" if test else "",
        fraction="" if test else f"\n  test_fraction: 0.1{MARK}of train, because there is no test file",
        text_column=_shown(text_columns[0]) if len(text_columns) == 1 else _shown_list(text_columns),
        task=_task_lines(labels),
        label_column=_shown(labels.column) if isinstance(labels.column, str) else _shown_list(labels.column),
        label_names=_shown_list(splits.label_names),
        counts=", ".join(f"{count}" for count in counts[:10]) + (", ..." if len(counts) > 10 else ""),
        max_tokens=max_tokens,
        lengths=f"median {np.median(lengths):.0f}, 99 % below {np.percentile(lengths, 99):.0f}{estimated}",
        truncation="head_tail" if cut > MUCH and len(text_columns) == 1 else "head",
        cut=f"{cut:.0%} of the texts are longer",
        teacher=_shown(teacher),
        student=_shown(student),
        label_map=label_map,
        rare=RARE_LINE if rare else "",
        best="macro_f1" if rare and not several else "log_loss",
    )
    return Draft(_aligned(text), tuple(concerns))


def _columns(path: str) -> dict[str, list[Any]]:
    """Return the values of each column in the first rows."""
    check_file(path, path)
    rows: dict[str, list[Any]] = {name: [] for name in TableFile(path, {}, path).names_there()}
    table = TableFile(path, dict.fromkeys(rows, "data.text_column"), path, free=rows)
    for batch in table.batches():
        for name in rows:
            rows[name] += batch.column(name).to_pylist()
        if len(next(iter(rows.values()), ())) >= LOOKED_AT:
            break
    return rows


def _text_columns(columns: Mapping[str, Sequence[Any]], path: str) -> tuple[str, ...]:
    """Return the column that holds the texts: one with a usual name, else the one with by far the longest texts.

    Two columns with the usual names of pairs are both read.
    """
    lengths = {name: np.mean(list(map(len, texts))) for name, texts in _textual(columns)}
    lowered = {name.strip().lower(): name for name in lengths}
    for pair in PAIR_NAMES:
        if set(pair) <= set(lowered):
            return lowered[pair[0]], lowered[pair[1]]
    named = [name for usual in TEXT_NAMES for name in lengths if name.strip().lower() == usual]
    longest = sorted(lengths, key=lambda name: lengths[name], reverse=True)
    if not longest:
        raise DataError(f"{path}: no column holds texts, only {', '.join(columns)}")
    if named or len(longest) == 1 or lengths[longest[0]] > 2 * lengths[longest[1]]:
        return (named[0] if named else longest[0],)
    raise DataError(
        f"{path}: {longest[0]!r} and {longest[1]!r} both hold texts, and neither name says which to read",
        hint="--text-column NAME says which; give both for pairs of texts",
    )


def _textual(columns: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, list[str]]]:
    """Yield the columns that hold texts rather than numbers or dates."""
    for name, values in columns.items():
        texts = [value for value in values if isinstance(value, str) and value.strip()]
        are_texts = len(texts) == sum(value is not None for value in values) and not _are_lists(texts)
        if texts and are_texts and not not_texts(pa.array(texts)):
            yield name, texts


def _labels(columns: Mapping[str, Sequence[Any]], text_columns: Sequence[str], named: str | None, path: str) -> Labels:
    """Return where the labels are: in the column `named`, in columns of 0 and 1, or in a column that looks like it."""
    others = {name: values for name, values in columns.items() if name not in text_columns}
    if not named and (marks := _marks(others)):
        reason = f"a text may have several labels: {len(marks)} columns hold 0 and 1"
        return Labels(marks, "multi_label", reason=reason, doubt="remove columns that are no labels from label_column")
    name = named or _label_column(others, path, columns)
    values = [value for value in columns[name] if value is not None]
    several = f"a text may have several labels: {shown_value(name)}"
    if _are_lists(values):
        return Labels(name, "multi_label", reason=f"{several} holds lists")
    found = joined(list(dict.fromkeys(map(str, values))))
    if (separator := separator_of(found)) is None:
        return Labels(name)
    # One name such as "food & drink" is no proof; another that looks joined is, or a mark that names do not have.
    if len(found) > 1 or SURELY_JOINED.search(found[0]):
        doubt = f"if {shown_value(found[0])} is one label, remove task and label_separator"
        return Labels(name, "multi_label", separator, f"{several} joins them with {separator!r}", doubt)
    doubt = f"if it is, set task: multi_label and label_separator: {json.dumps(separator)}"
    return Labels(name, reason=f"{shown_value(found[0])} looks like several labels in one", doubt=doubt)


def _marks(others: Mapping[str, Sequence[Any]]) -> tuple[str, ...]:
    """Return the columns of 0 and 1 if there are three or more, and no other column is or looks like labels."""
    marks = [name for name in others if all(str(value).strip().lower() in YES_OR_NO for value in others[name])]
    rest = [name for name in _with_few_values(others) if name not in marks]
    is_named = any(name.strip().lower() in LABEL_NAMES for name in others)
    return tuple(marks) if len(marks) > 2 and not rest and not is_named else ()


def _are_lists(values: Iterable[Any]) -> bool:
    """Say whether values are lists, or texts that look like one."""
    there = [value for value in values if value is not None]
    return bool(there) and all(isinstance(value, list) or LISTED.fullmatch(str(value)) for value in there)


def _with_few_values(columns: Mapping[str, Sequence[Any]]) -> list[str]:
    distinct = {name: len(set(map(str, values))) for name, values in columns.items()}
    return [
        name for name, count in distinct.items() if 2 <= count <= max(2, min(MOST_CLASSES, len(columns[name]) / 10))
    ]


def _label_column(others: Mapping[str, Sequence[Any]], path: str, there: Iterable[str]) -> str:
    """Return the column that holds the labels: one with a usual name, else the only one of lists or of few values."""
    named = [name for usual in LABEL_NAMES for name in others if name.strip().lower() == usual]
    lists = [name for name, values in others.items() if _are_lists(values)]
    few = lists if len(lists) == 1 else _with_few_values(others)
    if named or len(few) == 1:
        return named[0] if named else few[0]
    what = (
        f"{' and '.join(map(repr, few))} could all hold labels" if few else "no column has few enough values for labels"
    )
    raise DataError(
        f"{path}: {what}; the columns are {', '.join(there)}", hint="--label-column NAME says which holds the labels"
    )


def _task_lines(labels: Labels) -> str:
    """Return the lines that say that a text has several labels, or that it may; none if nothing speaks for it."""
    if not labels.reason:
        return ""
    task = "\n  task: multi_label" if labels.task == "multi_label" else "\n"
    separator = f"\n  label_separator: {json.dumps(labels.separator)}" if labels.separator else ""
    return f"{task}{MARK}{'; '.join(filter(None, [labels.reason, labels.doubt]))}{separator}"


def _shown_list(values: Sequence[str]) -> str:
    return f"[{', '.join(map(_shown, values))}]"


def _lengths(splits: Splits, tokenizer: PreTrainedTokenizerBase | None) -> np.ndarray:
    """Return the number of tokens of some training texts."""
    texts = drawn(splits.train, MEASURED, 0)["text"][:]
    if tokenizer is None:
        return np.array([2 + TOKENS_PER_WORD * len(text.split()) for text in texts])
    return np.asarray(encode(tokenizer, texts, Truncation(LONGEST)).lengths)


def _shown(value: str) -> str:
    """Return a text as YAML reads it back."""
    quoted = json.dumps(value, ensure_ascii=False)
    try:
        return value if YAML(typ="safe", pure=True).load(f"[{value}]") == [value] else quoted
    except YAMLError:
        return quoted


RARE_LINE = """
  class_weights: balanced\x1f# some classes are rare; without it they may never be answered"""
TEMPLATE = """\
# A recipe for {name}, drafted by `distill init`. `distill check` lists every key with its default.
data:
  files:
    train: {train}{test}{fraction}
  text_column: {text_column}{task}
  label_column: {label_column}
  label_names: {label_names}\x1f# train texts: {counts}{label_map}
  validation_fraction: 0.1\x1f# of train; selects the checkpoint and proves the exports
  max_tokens: {max_tokens}\x1f# tokens of a text: {lengths}
  truncation: {truncation}\x1f# what is kept of longer texts: {cut}
teacher:\x1f# accurate and slow; the student learns from it
  model: {teacher}
  output: ./teacher{rare}
  training:\x1f# any field of transformers.TrainingArguments
    per_device_train_batch_size: 16
    num_train_epochs: 3
    learning_rate: 3.0e-5
    warmup_steps: 0.1\x1f# of all steps
    eval_strategy: epoch
    save_strategy: epoch
    metric_for_best_model: {best}
student:\x1f# small and fast
  model: {student}\x1f# or layers: 6, of the teacher's; or ngrams: {{}}, thousands of texts a second
  output: ./student
  control: true\x1f# also trains it without the teacher, to see whether distillation helped{rare}
  training:
    per_device_train_batch_size: 16
    num_train_epochs: 3
    learning_rate: 5.0e-5
    warmup_steps: 0.1
    eval_strategy: epoch
    save_strategy: epoch
    metric_for_best_model: {best}
"""


def _aligned(text: str) -> str:
    """Return the recipe with its comments, which `MARK` begins, below each other."""
    lines = [line.partition(MARK) for line in text.splitlines()]
    width = min(40, max(len(value) for value, mark, _ in lines if mark))
    padded = ((value.ljust(width) + "  " if value and mark else value, comment) for value, mark, comment in lines)
    return "".join(f"{value}{'# ' + comment if comment else ''}\n" for value, comment in padded)
