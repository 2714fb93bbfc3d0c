"""Trim a tokenizer and a model's embeddings to the tokens that some texts use."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from distill.errors import ModelError
from distill.models.config import embeddings_of, first_position
from distill.storage.files import read_json, write_json

# Of BPE vocabularies that make tokens in another way than by merging their characters.
OTHER_MERGES = ("continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")


def most_used(counts: np.ndarray, wanted: float) -> list[int]:
    """Return the most used tokens, in order of their ids; `counts` says how often the texts have each id.

    `wanted` is the share of all tokens in the texts that those cover, at most 1, or how many there are.
    """
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    if wanted > 1:
        return sorted(order[: int(wanted)].tolist())
    covered = np.cumsum(counts[order]) / counts.sum()
    return sorted(order[: np.searchsorted(covered, wanted - 1e-12) + 1].tolist())


def check_trimmable(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ModelError` if the tokenizer's vocabulary cannot be trimmed."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model["type"] == "BPE" and any(model.get(key) for key in OTHER_MERGES):
        raise ModelError(
            "student.vocabulary: this tokenizer makes tokens in another way than by merging characters; leave it out"
        )


def trim_tokenizer(
    tokenizer: PreTrainedTokenizerBase, counts: np.ndarray, wanted: float
) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """Return a tokenizer with only the most used tokens and what they are made of, and the former id of each token.

    `counts` and `wanted` are as in `most_used`. A text whose tokens are all kept is cut into the same tokens as before:
    WordPiece takes the longest piece, BPE makes the same merges, and Unigram finds the same best path, because all that
    they chose is still there. Other words are spelled with smaller pieces. So the characters of all tokens in the texts
    are kept, and for BPE the tokens that are merged into those that are kept. Special and added tokens are kept. Raises
    `ModelError` if the vocabulary is of a kind that cannot be trimmed.
    """
    check_trimmable(tokenizer)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        tokenizer.save_pretrained(folder)
        path = folder / "tokenizer.json"
        description = read_json(path)
        model = description["model"]
        names = _names(model)
        kept = {names[token] for token in most_used(counts, wanted) if token in names}
        characters = {character for token in np.flatnonzero(counts) for character in names.get(int(token), "")}
        kept |= _parts(model, kept, characters, set(names.values()))
        added = {token["id"] for token in description["added_tokens"]}
        special: tuple[Any, ...] = (tokenizer.unk_token_id, tokenizer.pad_token_id)
        added |= {token for token in special if token is not None}
        former = sorted({id for id, name in names.items() if name in kept} | added)
        new = {old: index for index, old in enumerate(former)}
        _trim_pieces(model, names, new)
        for token in description["added_tokens"]:
            token["id"] = new[token["id"]]
        _renumber(description["post_processor"], new)
        write_json(path, description)
        trimmed = AutoTokenizer.from_pretrained(folder)
    # These were corrected after loading (see loading.load_tokenizer), or are of the temporary folder.
    for name in ("name_or_path", "padding_side", "model_input_names", "model_max_length"):
        setattr(trimmed, name, getattr(tokenizer, name))
    return trimmed, former


def trim_embeddings(model: PreTrainedModel, former: Sequence[int]) -> None:
    """Keep only the embeddings of the tokens `former`, in rising order; the model then answers for the new ids.

    Added tokens without an embedding stay without one. Raises `ModelError` if the architecture counts positions from a
    token that gets another id, or has its table in several places.
    """
    config, table = model.config, model.get_input_embeddings()
    places = sum(getattr(module, "weight", None) is table.weight for module in model.modules())
    if not isinstance(table, nn.Embedding) or table.num_embeddings != embeddings_of(config) or places > 1:
        raise ModelError(
            f"student.vocabulary: {config.model_type} has no single table of embeddings to trim; leave it out"
        )
    former = [old for old in former if old < table.num_embeddings]
    new = {old: index for index, old in enumerate(former)}
    padding = first_position(config) - 1
    if padding >= 0 and new.get(padding) != padding:
        raise ModelError(
            f"student.vocabulary: {config.model_type} counts positions from the padding token; leave it out"
        )
    # The module stays, because some architectures have one of their own, such as Gemma, which scales the embeddings.
    table.weight = nn.Parameter(table.weight.detach()[torch.tensor(former, device=table.weight.device)].clone())
    table.num_embeddings = config.vocab_size = len(former)
    table.padding_idx = new.get(table.padding_idx)
    for key, value in config.to_dict().items():
        if key.endswith("_token_id") and value is not None:
            ids = [new.get(one, one) for one in value] if isinstance(value, list) else new.get(value, value)
            setattr(config, key, ids)


def unknown_share(tokenizer: PreTrainedTokenizerBase, ids: Sequence[Sequence[int]]) -> float:
    """Return the share of all tokens that are unknown."""
    return sum(row.count(tokenizer.unk_token_id) for row in ids) / max(1, sum(map(len, ids)))


def _names(model: dict[str, Any]) -> dict[int, str]:
    """Return the token of each id."""
    if isinstance(model["vocab"], dict):
        return {id: token for token, id in model["vocab"].items()}
    return {id: token for id, (token, _) in enumerate(model["vocab"])}


def _parts(model: dict[str, Any], kept: set[str], characters: set[str], known: set[str]) -> set[str]:
    """Return the `known` tokens that others are made of: `characters`, and for BPE what is merged into `kept`."""
    prefix = model.get("continuing_subword_prefix") or ""
    parts = {part for character in characters for part in (character, prefix + character)}
    parts |= {f"<0x{byte:02X}>" for byte in range(256)} if model.get("byte_fallback") else set()
    if model["type"] == "BPE":
        ranks = {
            tuple(pair.split(" ") if isinstance(pair, str) else pair): rank for rank, pair in enumerate(model["merges"])
        }
        parts |= {part for token in kept for part in _merged(token, ranks)}
        parts |= {token for token in known if len(token) == 1}  # the 256 bytes, or an alphabet
    return parts & known


def _merged(token: str, ranks: dict[tuple[str, str], int]) -> set[str]:
    """Return every token that BPE makes on its way from the characters of `token` to the token itself."""
    parts, made = list(token), set(token)
    while len(parts) > 1:
        rank, place = min(
            (ranks.get((left, right), len(ranks)), i) for i, (left, right) in enumerate(itertools.pairwise(parts))
        )
        if rank == len(ranks):
            break
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
        made.add(parts[place])
    return made


def _trim_pieces(model: dict[str, Any], names: dict[int, str], new: dict[int, int]) -> None:
    if isinstance(model["vocab"], dict):
        model["vocab"] = {name: new[old] for old, name in sorted(names.items()) if old in new}
    else:
        model["vocab"] = [piece for old, piece in enumerate(model["vocab"]) if old in new]
        model["unk_id"] = new.get(model["unk_id"])
    if "merges" in model:
        vocab = set(model["vocab"])
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        model["merges"] = [pair for pair in pairs if {*pair, "".join(pair)} <= vocab]


def _renumber(processor: dict[str, Any] | None, new: dict[int, int]) -> None:
    """Give the special tokens that a post-processor puts around a text their new ids."""
    if processor is None:
        return
    for inner in processor.get("processors", ()):
        _renumber(inner, new)
    for key in ("sep", "cls"):  # of BertProcessing and RobertaProcessing
        if key in processor:
            processor[key] = [processor[key][0], new[processor[key][1]]]
    for token in processor.get("special_tokens", {}).values():
        token["ids"] = [new[id] for id in token["ids"]]
