"""The configuration and the tokenizer of an export, from their files. Works without torch and transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokenizers import Tokenizer

from distill.data.encoding import NO_LIMIT
from distill.errors import ModelError, one_line
from distill.models.config import FORMER_NAMES, POSITIONS_AFTER_PADDING, most_tokens
from distill.models.weights import ONNX_WEIGHTS, OPENVINO_WEIGHTS
from distill.storage.checksums import check_whole
from distill.storage.files import read_json

CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"  # where older versions of transformers keep them
NUMBERS = ("vocab_size", "max_position_embeddings", "pad_token_id")
MOST_CLASSES = 100_000
CLASS_NUMBER = re.compile(r"\d{1,9}", re.ASCII)


class ExportedConfig(SimpleNamespace):
    """The values in a config.json, with the defaults of `PretrainedConfig` for what a classifier needs."""

    architectures: list[str] | None = None
    problem_type: str | None = None
    pad_token_id: int | None = None
    model_type: str
    name_or_path: str
    id2label: dict[int, Any]
    num_labels: int


@dataclass
class ExportedTokenizer:
    """A tokenizer.json and its settings, with the attributes of a `PreTrainedTokenizerBase` that `encode` needs."""

    backend_tokenizer: Tokenizer
    model_max_length: int
    pad_token_id: int
    eos_token_id: int | None
    unk_token_id: int | None
    truncation_side: str
    split_special_tokens: bool

    def num_special_tokens_to_add(self) -> int:
        """Return how many special tokens it puts around a text."""
        return self.backend_tokenizer.num_special_tokens_to_add(False)

    def get_vocab(self) -> dict[str, int]:
        """Return the id of each token, added ones included."""
        return self.backend_tokenizer.get_vocab()

    def convert_ids_to_tokens(self, token: int) -> str | None:
        """Return the token with this id."""
        return self.backend_tokenizer.id_to_token(token)


def is_export(folder: Path) -> bool:
    """Say whether a folder holds an ONNX or OpenVINO model with a tokenizer.json, which need no transformers."""
    has_graph = any((folder / name).is_file() for name in (ONNX_WEIGHTS, OPENVINO_WEIGHTS))
    return has_graph and (folder / TOKENIZER).is_file() and (folder / CONFIG).is_file()


def read_config(folder: Path | str) -> ExportedConfig:
    """Return the configuration of an export; raises `ModelError` if it is damaged or a value has the wrong type."""
    folder = Path(folder)
    check_whole(folder, (CONFIG,))
    settings = _object(folder / CONFIG)
    for former, name in FORMER_NAMES.items():
        if former in settings:
            settings.setdefault(name, settings[former])
    place = f"{folder}: {CONFIG}"
    if not isinstance(settings.get("model_type"), str):
        raise ModelError(f"{place}: model_type: wants the name of an architecture, got {settings.get('model_type')!r}")
    for name in NUMBERS:
        value = settings.get(name)
        if value is not None and type(value) is not int:
            raise ModelError(f"{place}: {name}: wants a whole number, got {value!r:.50}")
    classes: Any = settings.get("architectures")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(one, str) for one in classes)):
        raise ModelError(f"{place}: architectures: wants a list of names of classes, got {classes!r:.80}")
    if settings["model_type"] in POSITIONS_AFTER_PADDING and settings.setdefault("pad_token_id", 1) is None:
        raise ModelError(f"{place}: pad_token_id: missing; {settings['model_type']} counts positions from it")
    labels = _labels(settings, place)
    return ExportedConfig(**settings | {"id2label": labels, "num_labels": len(labels), "name_or_path": str(folder)})


def _labels(settings: Mapping[str, Any], place: str) -> dict[int, Any]:
    found, count = settings.get("id2label"), settings.get("num_labels", 2)
    if found is None:
        if type(count) is not int or not 1 <= count <= MOST_CLASSES:
            raise ModelError(f"{place}: num_labels: wants a number from 1 to {MOST_CLASSES}, got {count!r:.50}")
        return {index: f"LABEL_{index}" for index in range(count)}
    if not isinstance(found, Mapping) or not found or not all(CLASS_NUMBER.fullmatch(key) for key in found):
        raise ModelError(f"{place}: id2label: wants the name of each class by its number, got {found!r:.80}")
    return {int(key): name for key, name in found.items()}


def read_tokenizer(folder: Path | str) -> ExportedTokenizer:
    """Return the tokenizer of an export; raises `ModelError` if a file is damaged or a setting cannot be used."""
    folder = Path(folder)
    check_whole(folder, ("tokenizer*", SPECIAL_TOKENS))
    try:
        backend = Tokenizer.from_file(str(folder / TOKENIZER))
    except Exception as error:
        raise ModelError(f"{folder}: no tokenizer can be loaded: {one_line(error)}") from error
    settings: dict[str, Any] = {}
    for name in (SPECIAL_TOKENS, TOKENIZER_CONFIG):
        if (folder / name).is_file():
            settings |= _object(folder / name)
    _check_agreement(backend, settings, folder)
    tokens = {name: _token_id(backend, settings.get(f"{name}_token")) for name in ("pad", "eos", "unk")}
    of_config = _object(folder / CONFIG).get("pad_token_id")
    known = (tokens["pad"], tokens["eos"], of_config if type(of_config) is int and of_config >= 0 else None)
    padding = next((token for token in known if token is not None), 0)  # any will do, because the mask hides it
    limit = settings.get("model_max_length", settings.get("max_len"))
    least = backend.num_special_tokens_to_add(False) + 1
    side = settings.get("truncation_side")
    return ExportedTokenizer(
        backend,
        most_tokens(NO_LIMIT if limit is None else limit, least, str(folder)),
        padding,
        tokens["eos"],
        tokens["unk"],
        "left" if side == "left" else "right",
        settings.get("split_special_tokens") is True,
    )


def _check_agreement(backend: Tokenizer, settings: Mapping[str, Any], folder: Path) -> None:
    """Raise `ModelError` if tokenizer_config.json asks for other tokens than tokenizer.json gives.

    transformers then changes the tokenizer; every other library reads tokenizer.json alone.
    """
    normalizer = json.loads(backend.to_str()).get("normalizer") or {}
    of_bert = {"do_lower_case": "lowercase", "strip_accents": "strip_accents"}
    if normalizer.get("type") != "BertNormalizer":
        of_bert = {}
    asked = [key for key, its in of_bert.items() if settings.get(key) not in (None, normalizer.get(its))]
    first = _token_id(backend, settings.get("cls_token"))
    if first is not None and first not in backend.encode("").ids:
        asked.append("cls_token")
    added = settings.get("added_tokens_decoder")
    for key, token in added.items() if isinstance(added, Mapping) else ():
        if str(_token_id(backend, token)) != str(key):
            asked.append("added_tokens_decoder")
            break
    if asked:
        raise ModelError(
            f"{folder}: {TOKENIZER_CONFIG}: {asked[0]}: tokenizer.json gives other tokens",
            hint="load the tokenizer with transformers and save it again; then both files agree",
        )


def _token_id(backend: Tokenizer, token: Any) -> int | None:
    if isinstance(token, Mapping):  # with how it is stripped and normalized
        token = token.get("content")
    return backend.token_to_id(token) if isinstance(token, str) else None


def _object(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise ModelError(f"{path}: wants a JSON object, got {found!r:.50}")
    return found
