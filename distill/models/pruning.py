"""Cut attention heads, feed-forward channels and layers out of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from distill.errors import ModelError
from distill.models.loading import BERT_LIKE, layer_count, layer_list
from distill.models.students import build_from_layers


class Units(NamedTuple):
    """Where a layer's heads or channels are: in the outputs of the linear modules `makes` and the inputs of `reads`.

    A module in `makes` may hold several kinds of outputs one after the other, as ModernBERT's Wqkv does.
    """

    makes: tuple[str, ...]
    reads: str


class Parts(NamedTuple):
    """Where an architecture's layers have their heads and channels, and the configuration's key for the latter."""

    attention: str
    heads: Units
    channels: Units
    width: str = "intermediate_size"


_FEED_FORWARD = Units(("intermediate.dense",), "output.dense")
_PROJECTIONS = Units(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj")
_GATED = Units(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
PARTS = {
    **dict.fromkeys(
        (*BERT_LIKE, "data2vec-text"),
        Parts(
            "attention.self",
            Units(("attention.self.query", "attention.self.key", "attention.self.value"), "attention.output.dense"),
            _FEED_FORWARD,
        ),
    ),
    "distilbert": Parts(
        "attention",
        Units(("attention.q_lin", "attention.k_lin", "attention.v_lin"), "attention.out_lin"),
        Units(("ffn.lin1",), "ffn.lin2"),
        "hidden_dim",
    ),
    "mpnet": Parts(
        "attention.attn",
        Units(("attention.attn.q", "attention.attn.k", "attention.attn.v"), "attention.attn.o"),
        _FEED_FORWARD,
    ),
    "modernbert": Parts("attn", Units(("attn.Wqkv",), "attn.Wo"), Units(("mlp.Wi",), "mlp.Wo")),
    **dict.fromkeys(("gte", "nomic_bert"), Parts("self_attn", _PROJECTIONS, _GATED)),
    "jina_embeddings_v3": Parts("self_attn", _PROJECTIONS, Units(("mlp.fc1",), "mlp.fc2")),
}


class Size(NamedTuple):
    """How many heads and feed-forward channels each layer of a model has, from the first layer to the last."""

    heads: tuple[int, ...]
    channels: tuple[int, ...]

    @property
    def layers(self) -> int:
        """The number of layers."""
        return len(self.heads)


@dataclass(frozen=True)
class Kept:
    """What a pruned model keeps: layers, and of each of those the heads and channels, all counted from 0 and rising."""

    layers: tuple[int, ...]
    heads: tuple[tuple[int, ...], ...]
    channels: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> Size:
        """The numbers of what is kept."""
        return Size(tuple(map(len, self.heads)), tuple(map(len, self.channels)))


def even(layers: int, heads: int, channels: int) -> Size:
    """Return the size of a model whose layers are all of the same size."""
    return Size((heads,) * layers, (channels,) * layers)


def parts_of(config: PretrainedConfig) -> Parts:
    """Return where models of this configuration have heads and channels; raise `ModelError` if that is not known."""
    if config.model_type not in PARTS:
        raise ModelError(
            f"student.prune: {config.model_type} is no architecture whose heads and channels distill can cut "
            f"({', '.join(sorted(PARTS))}); give student.layers or student.config instead"
        )
    return PARTS[config.model_type]


def size_of(config: PretrainedConfig) -> Size:
    """Return the size that a configuration says; raises `ModelError` for another architecture than those in PARTS."""
    return even(layer_count(config), config.num_attention_heads, getattr(config, parts_of(config).width))


def used_size(model: PreTrainedModel) -> Size:
    """Return how many heads and channels of each layer are read at all: those that `without_empty_parts` leaves."""
    parts, heads = parts_of(model.config), model.config.num_attention_heads
    layers = _layers(model)
    return Size(
        tuple(len(_used(layer, parts.heads, heads)) for layer in layers),
        tuple(len(_used(layer, parts.channels)) for layer in layers),
    )


def prune(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """Return a copy of a classifier with only what is `kept`; transformers' from_pretrained loads it once it is saved.

    Layers are cut out, and so are channels, down to the number of the layer that keeps most of them: a configuration
    can say how many there are. Most configurations cannot say that there are fewer heads of the same width, and none
    that one layer has fewer channels than another. So the weights of the other heads and channels that are not kept
    become zero: the outputs that make them and the columns that read them. Then no gradient reaches them, so they stay
    zero in training, and `without_empty_parts` leaves them out. If what is removed computed only zeros, the logits stay
    the same.
    """
    parts, whole = parts_of(model.config), size_of(model.config)
    heads, width = whole.heads[0], max(kept.size.channels)
    student = build_from_layers(model, kept.layers)
    setattr(student.config, parts.width, width)
    for layer, kept_heads, kept_channels in zip(_layers(student), kept.heads, kept.channels, strict=True):
        removed = sorted(set(range(whole.channels[0])) - set(kept_channels))
        emptied = removed[: width - len(kept_channels)]
        stay = sorted((*kept_channels, *emptied))
        _keep(layer, parts.channels, stay)
        _empty(layer, parts.channels, [stay.index(channel) for channel in emptied], width)
        _empty(layer, parts.heads, sorted(set(range(heads)) - set(kept_heads)), heads)
    return student


def without_empty_parts(model: PreTrainedModel) -> PreTrainedModel:
    """Cut the empty heads and channels (see `prune`) out of `model` itself, and return it; it computes the same logits.

    A head or channel is empty if all weights that read it are zero. One of each stays in every layer. The configuration
    no longer tells the model's shape, so the result can be run and traced, but not saved. Models of other architectures
    than those in PARTS are returned as they are.
    """
    if model.config.model_type not in PARTS:
        return model
    parts, heads = PARTS[model.config.model_type], model.config.num_attention_heads
    for layer in _layers(model):
        kept = _used(layer, parts.heads, heads)
        if len(kept) < heads:
            _keep(layer, parts.heads, kept, heads)
            _tell_heads(layer.get_submodule(parts.attention), kept, heads)
        _keep(layer, parts.channels, _used(layer, parts.channels))
    return model


def _used(layer: nn.Module, units: Units, count: int | None = None) -> list[int]:
    """Return which of the `count` units of a layer are read at all, or the first if none is; None: as in `_keep`."""
    reads: Any = layer.get_submodule(units.reads)
    read = reads.weight.detach().unflatten(1, (count or reads.in_features, -1)).ne(0).any(dim=2).any(dim=0)
    return read.nonzero().flatten().tolist() or [0]


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    return layer_list(model, layer_count(model.config))[1]


def _numbers(units: Sequence[int], size: int, block: int, blocks: int = 1) -> torch.Tensor:
    """Return the rows or columns of `units` that are each `size` wide, in each of `blocks` of length `block`."""
    within = torch.tensor(units, dtype=torch.long).unsqueeze(1) * size + torch.arange(size)
    return (torch.arange(blocks).unsqueeze(1) * block + within.flatten()).flatten()


def _linears(layer: nn.Module, units: Units) -> tuple[list[tuple[nn.Linear, int]], nn.Linear]:
    """Return the modules that make the units, each with its number of kinds of outputs, and the one that reads them."""
    reads: Any = layer.get_submodule(units.reads)
    makes: list[Any] = [layer.get_submodule(name) for name in units.makes]
    return [(module, module.out_features // reads.in_features) for module in makes], reads


def _keep(layer: nn.Module, units: Units, kept: Sequence[int], count: int | None = None) -> None:
    """Cut all units but those `kept` out of a layer that has `count` of them; None: as many as there are channels."""
    makes, reads = _linears(layer, units)
    width = reads.in_features
    size = width // (count or width)
    for module, blocks in makes:
        rows = _numbers(kept, size, width, blocks).to(module.weight.device)
        module.weight = nn.Parameter(module.weight.detach()[rows].clone())
        if module.bias is not None:
            module.bias = nn.Parameter(module.bias.detach()[rows].clone())
        module.out_features = len(rows)
    columns = _numbers(kept, size, width).to(reads.weight.device)
    reads.weight = nn.Parameter(reads.weight.detach()[:, columns].clone())
    reads.in_features = len(columns)


@torch.no_grad()
def _empty(layer: nn.Module, units: Units, removed: Sequence[int], count: int) -> None:
    """Set the weights of the units `removed` to zero, of `count` in a layer."""
    makes, reads = _linears(layer, units)
    width = reads.in_features
    for module, blocks in makes:
        rows = _numbers(removed, width // count, width, blocks)
        module.weight[rows] = 0
        if module.bias is not None:
            module.bias[rows] = 0
    reads.weight[:, _numbers(removed, width // count, width)] = 0


def _tell_heads(attention: Any, kept: Sequence[int], count: int) -> None:
    """Let an attention module compute the heads that are `kept` of `count`."""
    for name in ("num_attention_heads", "n_heads"):
        if hasattr(attention, name):
            setattr(attention, name, len(kept))
    if hasattr(attention, "all_head_size"):
        attention.all_head_size = attention.all_head_size // count * len(kept)
    if type(attention).__name__ == "MPNetSelfAttention":  # the bias of all heads, made once for all layers
        attention.register_forward_pre_hook(lambda _, inputs: (*inputs[:2], inputs[2][:, list(kept)], *inputs[3:]))
