"""What a model's configuration says: its classes, task, sizes and inputs. Works without torch and transformers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distill.data.encoding import NO_LIMIT
from distill.errors import ModelError
from distill.models.thresholds import SEVERAL
from distill.recipe.labels import SAME_NAMES, classes_of, renamed

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from distill.recipe.schema import Task

# These number positions from pad_token_id + 1, as fairseq does, so the earlier rows of the position table are unused.
POSITIONS_AFTER_PADDING = {
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer", "data2vec-text",
    "ibert", "luke", "xmod",
}  # fmt: skip
FORMER_NAMES = {"n_positions": "max_position_embeddings"}  # of sizes, in GPT-2's configuration
INPUTS = ("input_ids", "attention_mask")  # of every model; without token_type_ids, models take all token types as 0
NGRAMS = "distill_ngrams"  # the architecture of ngrams.py
TOKEN_TYPES = "token_type_ids"  # which text of a pair a token is of
# What transformers calls the tasks; its pipeline uses a softmax for one, and a sigmoid for the other.
PROBLEM_TYPES: dict[Task, str] = {"single_label": "single_label_classification", "multi_label": SEVERAL}


def share_padding(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a model the tokenizer's padding token: decoders need it to find the end of a text.

    Architectures that count positions from their own padding token keep it.
    """
    if config.model_type not in POSITIONS_AFTER_PADDING:
        config.pad_token_id = tokenizer.pad_token_id


def check_fit(config: PretrainedConfig, name: str, *, max_tokens: int, vocabulary: int) -> None:
    """Raise `ModelError` if the model takes fewer tokens than `max_tokens` or embeds fewer than `vocabulary`."""
    limit = token_limit(config)
    if limit is not None and max_tokens > limit:
        raise ModelError(f"{name}: takes at most {limit} tokens, but data.max_tokens is {max_tokens}")
    size = embeddings_of(config)
    if vocabulary > size:
        raise ModelError(
            f"{name}: embeds {size} tokens, but the tokenizer's ids go up to {vocabulary - 1}: they do not fit together"
        )


def embeddings_of(config: PretrainedConfig) -> float:
    """Return how many tokens the model embeds; infinite if it has no table (CANINE reads characters)."""
    return getattr(config, "vocab_size", None) or math.inf


def token_limit(config: PretrainedConfig) -> int | None:
    """Return how many tokens the position table takes; None if the architecture has none (relative positions)."""
    positions = getattr(config, "max_position_embeddings", None)
    if not positions or positions < 0:
        return None
    return positions - first_position(config)


def first_position(config: PretrainedConfig) -> int:
    """Return the row of the position table that a text's first token gets."""
    if config.model_type in POSITIONS_AFTER_PADDING:
        return config.pad_token_id + 1
    return 2 if config.model_type == "mpnet" else 0  # as if its padding token were always 1


def most_tokens(limit: Any, least: int, name: str) -> int:
    """Return a tokenizer's model_max_length as a number that tokenizers takes; some folders say 1e30.

    Raises `ModelError` about the model `name` if it is not a whole number of at least `least` tokens.
    """
    is_whole = type(limit) is int or (isinstance(limit, float) and (limit.is_integer() or limit == math.inf))
    if not is_whole or limit < least:
        raise ModelError(
            f"{name}: tokenizer_config.json: model_max_length: wants a whole number of tokens, at least {least} (one "
            f"plus the special tokens), got {limit!r:.50}"
        )
    return int(min(limit, NO_LIMIT))


def is_classifier(config: PretrainedConfig) -> bool:
    """Say whether the configuration is of a model that already has a classification head."""
    return any("ForSequenceClassification" in name for name in config.architectures or ())


def task_of(config: PretrainedConfig, name: str) -> Task:
    """Return whether the classifier of this configuration gives a text one label or several.

    Raises `ModelError` if it gives a number (regression), or if transformers knows no such task.
    """
    known = (*PROBLEM_TYPES.values(), "regression")
    if config.problem_type is not None and config.problem_type not in known:
        raise ModelError(
            f"{name}: config.json: problem_type: wants one of {', '.join(known)}, got {config.problem_type!r:.80}"
        )
    if config.problem_type == "regression" or config.num_labels == 1:
        raise ModelError(
            f"{name}: config.json: gives a text a number (regression: problem_type, or a single output); distill "
            "supports only classes"
        )
    return "multi_label" if config.problem_type == PROBLEM_TYPES["multi_label"] else "single_label"


def check_task(its: Task, task: Task, name: str) -> None:
    """Raise `ModelError` if `its`, the task of the model `name`, is not the data's."""
    if its != task:
        labels = {"single_label": "one label", "multi_label": "any number of labels"}
        raise ModelError(f"{name}: gives a text {labels[its]}, but data.task is {task}: a text has {labels[task]}")


def class_names(config: PretrainedConfig, name: str) -> tuple[str, ...]:
    """Return the class names in the configuration of the model `name`, in the order of its outputs.

    Raises `ModelError` if an output has no name, if a name is not text, or if two classes have the same name.
    """
    found = config.id2label
    if sorted(found) != list(range(len(found))):
        raise ModelError(
            f"{name}: config.json: id2label: wants a name for each of 0 to {len(found) - 1}, got names for "
            f"{', '.join(map(str, sorted(found)))}"
        )
    for index, named in found.items():
        if type(named) not in (str, int) or named == "":  # a whole number becomes text
            raise ModelError(
                f"{name}: config.json: id2label: wants text for the name of class {index}, got {named!r:.80}"
            )
    names = tuple(str(found[index]) for index in range(len(found)))
    if len(set(names)) < len(names):
        raise ModelError(f"{name}: config.json: id2label: two classes have the same name")
    return names


def name_classes(config: PretrainedConfig, label_names: Sequence[str], task: Task) -> None:
    """Set up the configuration for these classes, of which a text has one or, with "multi_label", any number."""
    config.id2label = dict(enumerate(label_names))
    config.label2id = {label: index for index, label in enumerate(label_names)}
    config.problem_type = PROBLEM_TYPES[task]


def check_outputs(outputs: int, classes: int, name: str) -> None:
    """Raise `ModelError` if the model `name` has more or fewer `outputs` than the `classes` in its config.json."""
    if outputs != classes:
        raise ModelError(f"{name}: has {outputs} outputs, but its config.json (id2label) names {classes} classes")


def align_labels(
    teacher_labels: Sequence[str],
    label_names: Sequence[str],
    label_map: Mapping[str, str] = SAME_NAMES,
    *,
    teacher: str,
) -> list[int]:
    """Return for each of `label_names` the teacher's column of that name, which `label_map` may call otherwise.

    Names match like labels: case and white space do not matter. If they match without the map, it is not used: a model
    that distill trained has the new names already. A teacher without names of its own ("LABEL_0", "LABEL_1", ...) is
    assumed to use the data's order, if there is no map. Raises `ModelError` if the names or their number differ.
    """
    unnamed = all(re.fullmatch(r"LABEL_\d+", name) for name in teacher_labels)
    for named in (list(teacher_labels), [renamed(label, label_map) for label in teacher_labels]):
        if len(set(named)) == len(named) == len(label_names):
            classes = list(classes_of(named, label_names, indices=False).values())
            if set(classes) == set(range(len(label_names))):
                return [classes.index(index) for index in range(len(label_names))]
    if unnamed and len(teacher_labels) == len(label_names) and not label_map:
        return list(range(len(label_names)))
    raise ModelError(
        f"{teacher}: its classes ({', '.join(teacher_labels)}) are not the data's ({', '.join(label_names)})",
        hint="--set data.label_map={THEIRS: OURS} says which is which",
    )


def inputs_of(config: PretrainedConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the `given` inputs that the model reads: token types only if it has several."""
    names = [*INPUTS, TOKEN_TYPES] if getattr(config, "type_vocab_size", 0) > 1 else INPUTS
    return {name: given[name] for name in names if given.get(name) is not None}


def is_ngrams(config: PretrainedConfig) -> bool:
    """Say whether a configuration is of an n-gram model, or of a graph of one (see export.ngram_graph)."""
    return config.model_type == NGRAMS or hasattr(config, NGRAMS)
