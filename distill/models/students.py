"""Students made from a teacher: a copy of some of its layers, or its architecture with other sizes."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel, set_seed

from distill.errors import ModelError, one_line
from distill.models.loading import BERT_LIKE, drop_thresholds, layer_count, layer_list, normalized_config
from distill.models.thresholds import CONFIG_KEY as THRESHOLDS
from distill.models.truncation import CONFIG_KEY as TRUNCATION_KEY

# Keys of a configuration that set a model's classes, vocabulary, architecture or form of output.
NOT_SIZES = {
    "vocab_size", "num_labels", "id2label", "label2id", "problem_type", "model_type", "architectures", "auto_map",
    "is_decoder", "is_encoder_decoder", "add_cross_attention", "tie_word_embeddings", "dtype", "torch_dtype",
    "return_dict", "output_attentions", "output_hidden_states", "transformers_version", "_name_or_path",
    TRUNCATION_KEY, THRESHOLDS,
}  # fmt: skip
# The errors that configurations and models raise for sizes that do not fit together or have the wrong type.
SIZE_ERRORS = (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, StrictDataclassError)


def choose_layers(count: int, layers: int | Sequence[int]) -> tuple[int, ...]:
    """Return which of a teacher's `count` layers a student keeps, counted from 0.

    A number means that many layers, evenly spread from the first to the last: 6 of 12 are 0, 2, 4, 7, 9, 11, the layers
    of DistilBERT (transformers, research_projects/distillation/scripts/extract_distilbert.py). A single layer is the
    first one, because later layers expect the output of earlier ones. A list of layers is checked and returned. Raises
    `ModelError` if the teacher lacks a layer or if there are none.
    """
    number = layers if isinstance(layers, int) else len(layers)
    if number < 1:
        raise ModelError(f"student.layers: wants one layer or more, got {number}")
    if isinstance(layers, int):
        if layers > count:
            raise ModelError(f"student.layers: the teacher has {count} layers, got {layers}")
        return tuple(int(layer) for layer in np.linspace(0, count - 1, layers).round())
    beyond = [layer for layer in layers if not 0 <= layer < count]
    if beyond:
        raise ModelError(f"student.layers: the teacher has {count} layers (0-{count - 1}), got {beyond[0]}")
    return tuple(layers)


def check_layers(skeleton: PreTrainedModel, layers: int | Sequence[int]) -> PretrainedConfig:
    """Return the configuration of a student of `layers`; raises what `build_from_layers` would, but needs no weights.

    `skeleton` is the teacher without weights (see loading.skeleton).
    """
    with torch.device("meta"):
        return build_from_layers(skeleton, layers).config


def build_from_layers(teacher: PreTrainedModel, layers: int | Sequence[int]) -> PreTrainedModel:
    """Return a student with copies of the teacher's `layers`, embeddings, pooler and head.

    `layers` is as in `choose_layers`. With all layers the student computes what the teacher computes. To start from the
    teacher's layers is DistilBERT's initialization (Sanh et al. 2019, section 2). A single text always has token type
    0, so that type's embedding is added to each word's and taken from each type's, which makes it zero. The table keeps
    its size, because pairs and other exporters feed all types. The teacher's thresholds are not copied.
    Raises `ModelError` if the teacher lacks a layer.
    """
    count = layer_count(teacher.config)
    layers = choose_layers(count, layers)
    config = copy.deepcopy(teacher.config)
    setattr(config, normalized_config(config).NUM_LAYERS, len(layers))
    if getattr(config, "layer_types", None):  # one name per layer (ModernBERT)
        config.layer_types = [config.layer_types[layer] for layer in layers]
    drop_thresholds(config)
    kept = teacher.state_dict()
    if config.model_type in BERT_LIKE:
        embeddings = f"{teacher.base_model_prefix}.embeddings"
        types = kept[f"{embeddings}.token_type_embeddings.weight"]
        # The padding row is shifted too. That changes nothing: padding is masked, and padding_idx only stops gradients.
        kept[f"{embeddings}.word_embeddings.weight"] = kept[f"{embeddings}.word_embeddings.weight"].float() + types[0]
        kept[f"{embeddings}.token_type_embeddings.weight"] = types - types[0]
    student = type(teacher)(config)
    source, target = layer_list(teacher, count), layer_list(student, len(layers))
    kept = {name: tensor for name, tensor in kept.items() if not name.startswith(f"{source[0]}.")}
    for position, layer in enumerate(layers):
        for name, tensor in _fitting(source[1][layer].state_dict(), target[1][position].state_dict()).items():
            kept[f"{target[0]}.{position}.{name}"] = tensor
    student.load_state_dict(kept, strict=True)
    return student


def _fitting(layer: dict[str, torch.Tensor], place: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights of a layer for a place that may not be its own.

    ModernBERT's first layer has no norm before its attention, because the embeddings end with one. A later layer that
    comes first multiplies that norm's weight into the attention's input instead; the first layer, if it comes later,
    gets a new norm.
    """
    norm, attention = "attn_norm.weight", "attn.Wqkv.weight"
    if norm in place and norm not in layer:
        return {**layer, norm: place[norm]}
    if norm in layer and norm not in place:
        if attention not in layer or "attn_norm.bias" in layer:
            raise ModelError("student.layers: of this model, the first layer has to stay the first one")
        return {name: tensor for name, tensor in layer.items() if not name.startswith("attn_norm.")} | {
            attention: layer[attention] * layer[norm]
        }
    return layer


def build_from_config(teacher_config: PretrainedConfig, sizes: Mapping[str, Any], *, seed: int) -> PreTrainedModel:
    """Return a student with the teacher's architecture, classes and vocabulary, other `sizes` and random weights.

    `sizes` are keys of the teacher's configuration ({"hidden_size": 192, "num_hidden_layers": 3}). All other keys are
    as in the teacher. The weights are fp32, drawn with `seed`. Raises `ModelError`, with one line for each key that is
    unknown, is not a size (classes, vocabulary, architecture), or has a value of another type than the teacher's. It is
    also raised if the model cannot be built or run with these sizes together.
    """
    config = copy.deepcopy(teacher_config)
    drop_thresholds(config)
    problems = [problem for key, value in sizes.items() if (problem := _set_size(config, key, value))]
    if problems:
        raise ModelError(*problems)
    settings = config.to_dict()
    if "layer_types" not in sizes:  # one name per layer (ModernBERT): the configuration makes them for its own number
        settings.pop("layer_types", None)
        if settings.get("global_attn_every_n_layers", 0) is None:  # see saving.save
            settings.pop("global_attn_every_n_layers")
    try:
        config = type(config).from_dict(settings)
        set_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            model(input_ids=torch.tensor([[0, 1]]))  # some models with unfit sizes can be built but not run
    except SIZE_ERRORS as error:
        raise ModelError(f"student.config: no {config.model_type} model has these sizes: {_reason(error)}") from error
    return model


def _set_size(config: PretrainedConfig, key: str, value: Any) -> str | None:
    """Set `key` to `value`, or return in one line why that is not possible."""
    place = f"student.config.{key}"
    if key in NOT_SIZES or key.endswith("_token_id"):
        return f"{place}: cannot be changed: classes, vocabulary and architecture are the teacher's"
    known = [name for name in (*config.to_dict(), *config.attribute_map) if name not in NOT_SIZES]
    if key not in known:
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"{place}: {config.model_type} has no such key{hint}"
    there = getattr(config, key)
    # A number may be int or float: the configuration's class checks which of the two it takes.
    number = isinstance(there, int | float) and not isinstance(there, bool)
    same = type(value) in (int, float) if number else there is None or isinstance(value, type(there))
    if not same:
        return f"{place}: wants {type(there).__name__}, as the teacher's {there!r}, got {value!r}"
    if type(there) is int and there > 0 and value <= 0:
        return f"{place}: wants a number above 0, got {value!r}"
    try:
        setattr(config, key, value)
    except SIZE_ERRORS as error:
        return f"{place}: {_reason(error)}"
    return None


def _reason(error: BaseException) -> str:
    """Return the line of an error that gives the reason: in a strict configuration's error the last, else the first."""
    if isinstance(error, StrictDataclassError):
        return re.sub(r"^\w+: ", "", str(error).strip().splitlines()[-1].strip())
    return one_line(error)
