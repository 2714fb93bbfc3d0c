"""Models and tokenizers: loaded with every misfit named, and students built from a teacher's layers."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from optimum.utils import NormalizedConfig, NormalizedConfigManager
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from distill.errors import ModelError

# These number positions from pad_token_id + 1 (fairseq's habit), so the rows of the position table before are unused.
POSITIONS_AFTER_PADDING = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer"}
WEIGHT_ERRORS = (OSError, ValueError, RuntimeError, SafetensorError)  # what from_pretrained raises for bad weights


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Return the fast tokenizer of a Hub name or local folder; raises `ModelError` where there is none."""
    _require_reachable(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{name}: no tokenizer can be loaded: {_one_line(error)}") from error
    # Where the files are missing, transformers 5 makes a tokenizer that knows its special tokens and nothing else.
    if not tokenizer.is_fast or len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ModelError(f"{name}: has no fast tokenizer (tokenizer.json or a vocabulary)")
    return tokenizer


def load_config(name: str) -> PretrainedConfig:
    """Return the configuration of a Hub name or local folder; raises `ModelError` where there is none."""
    _require_reachable(name)
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{name}: no model configuration can be loaded: {_one_line(error)}") from error


def load_classifier(
    name: str,
    label_names: Sequence[str],
    *,
    seed: int,
    max_tokens: int,
    vocabulary: int,
    pretrained: bool = True,
) -> PreTrainedModel:
    """Return a sequence classifier over `label_names`, fp32: pretrained weights, or random ones from the configuration.

    A head that knows the same names in another order is put in this one; what the weights lack (usually the head) is
    drawn with `seed`. Weights come from safetensors only, and no code that
    lies beside them is run. Raises `ModelError` where the model cannot be had, is no encoder that takes a
    head, has another number of classes, knows fewer than `vocabulary` tokens, or takes fewer than `max_tokens`.
    """
    config = load_config(name)
    if is_classifier(config) and config.num_labels != len(label_names):
        raise ModelError(
            f"{name}: classifies into {config.num_labels} classes, the data has {len(label_names)}: "
            f"{', '.join(label_names)}"
        )
    had = [config.id2label[index] for index in range(config.num_labels)] if is_classifier(config) else []
    config.id2label = dict(enumerate(label_names))
    config.label2id = {label: index for index, label in enumerate(label_names)}
    check_fit(config, name, max_tokens=max_tokens, vocabulary=vocabulary)
    set_seed(seed)
    try:
        if not pretrained:
            return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except WEIGHT_ERRORS as error:
        raise ModelError(f"{name}: no classifier can be loaded: {_one_line(error)}") from error
    # A head and a pooler may be new; an encoder of random weights would train, badly, and nobody would know.
    prefix = f"{model.base_model_prefix}."
    random = [key for key in report["missing_keys"] if key.startswith(prefix) and ".pooler." not in key]
    if random:
        raise ModelError(f"{name}: the weights lack {len(random)} tensors of the encoder, first {min(random)}")
    if had != list(label_names) and set(had) == set(label_names):  # the same classes in another order
        return reorder_classes(model, [had.index(label) for label in label_names], label_names)
    return model


def check_fit(config: PretrainedConfig, name: str, *, max_tokens: int, vocabulary: int) -> None:
    """Raise `ModelError` where the model takes fewer tokens than `max_tokens` or knows fewer than `vocabulary`."""
    limit = token_limit(config)
    if limit is not None and max_tokens > limit:
        raise ModelError(f"{name}: takes at most {limit} tokens, but data.max_tokens is {max_tokens}")
    size = getattr(config, "vocab_size", None)
    if size is not None and vocabulary > size:
        raise ModelError(f"{name}: embeds {size} tokens, but the tokenizer knows {vocabulary}: they are not a pair")


def token_limit(config: PretrainedConfig) -> int | None:
    """Return how many tokens the position table takes, or None where the architecture has none (relative positions)."""
    positions = getattr(config, "max_position_embeddings", None)
    if not positions or positions < 0:
        return None
    return positions - config.pad_token_id - 1 if config.model_type in POSITIONS_AFTER_PADDING else positions


def is_classifier(config: PretrainedConfig) -> bool:
    """Say whether the configuration belongs to a model that already has a classification head."""
    return any("ForSequenceClassification" in name for name in config.architectures or ())


def layer_count(config: PretrainedConfig) -> int:
    """Return the number of transformer layers, whatever the architecture calls it (`n_layers` in DistilBERT)."""
    return normalized_config(config).num_layers


def check_layers(config: PretrainedConfig, layers: Sequence[int]) -> None:
    """Raise `ModelError` where a teacher of this configuration lacks one of `layers`."""
    count = layer_count(config)
    beyond = [layer for layer in layers if layer >= count]
    if beyond:
        raise ModelError(f"student.layers: the teacher has {count} layers (0-{count - 1}), got {beyond[0]}")


def build_from_layers(teacher: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """Return a student of the teacher's architecture with copies of `layers` (from 0), its embeddings, pooler and head.

    With every layer chosen it computes exactly what the teacher computes. Starting from the teacher's own layers is
    DistilBERT's initialisation (Sanh et al. 2019, section 2). Raises `ModelError` for layers the teacher lacks.
    """
    check_layers(teacher.config, layers)
    count = layer_count(teacher.config)
    config = copy.deepcopy(teacher.config)
    setattr(config, normalized_config(config).NUM_LAYERS, len(layers))
    student = type(teacher)(config)
    source, target = _layer_list(teacher, count), _layer_list(student, len(layers))
    kept = {name: tensor for name, tensor in teacher.state_dict().items() if not name.startswith(f"{source[0]}.")}
    for position, layer in enumerate(layers):
        for name, tensor in source[1][layer].state_dict().items():
            kept[f"{target[0]}.{position}.{name}"] = tensor
    student.load_state_dict(kept, strict=True)
    return student


def reorder_classes(model: PreTrainedModel, columns: Sequence[int], label_names: Sequence[str]) -> PreTrainedModel:
    """Make class i of `model` what its class `columns[i]` was, name them `label_names`, and return it."""
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    if head.out_features != len(columns):
        raise ModelError(f"{type(model).__name__}: its last linear layer is not its classification head")
    with torch.no_grad():
        head.weight.copy_(head.weight[list(columns)])
        if head.bias is not None:
            head.bias.copy_(head.bias[list(columns)])
    model.config.id2label = dict(enumerate(label_names))
    model.config.label2id = {label: index for index, label in enumerate(label_names)}
    return model


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def weights_fingerprint(model: nn.Module) -> str:
    """Return a SHA-256 of all weights, by name, for manifests."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _layer_list(model: PreTrainedModel, count: int) -> tuple[str, nn.ModuleList]:
    """The name and the list of the transformer layers: the one ModuleList as long as the configuration says."""
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and name.split(".")[-1] in ("layer", "layers")
    ]
    if len(lists) != 1:
        raise ModelError(
            f"student.layers: cannot tell which modules of {type(model).__name__} are its layers; give student.model"
        )
    return lists[0]


def normalized_config(config: PretrainedConfig) -> NormalizedConfig:
    """Return optimum's view of the configuration, which knows each architecture's own names for its sizes."""
    try:
        return NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
    except KeyError:
        raise ModelError(f"{config.model_type}: not an architecture that optimum knows the sizes of") from None


def _require_reachable(name: str) -> None:
    """A path that is not there would be looked for on the Hub, with an answer that names the wrong fault."""
    path = Path(name)
    is_path = name.startswith((".", "/", "~")) or path.is_absolute() or name.count("/") > 1
    if is_path and not path.is_dir():
        raise ModelError(f"{name}: no such folder")
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(f"{name}: not a model folder: it has no config.json")


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
