"""Find which files of a local data folder make up each split, and what the dataset card says about them.

datasets itself never reads the folder, since a card can point it to a server or to any file of the machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import ClassLabel, LargeList, List
from datasets.data_files import EmptyDatasetError, get_data_patterns, resolve_pattern, sanitize_patterns
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData
from yaml import YAMLError

from distill.data.tables import READERS, packed_with
from distill.errors import DataError, one_line
from distill.storage.files import lies_in

CARD = "README.md"
# Files that datasets writes beside the data.
NOT_DATA = ("dataset_infos.json", "dataset_dict.json", "dataset_info.json", "state.json")
# The keys of a card's configuration that are supported.
FOLLOWED = {"data_files", "data_dir", "default", "version", "description", "features"}
# The errors that datasets and huggingface_hub raise for a malformed card.
CARD_ERRORS = (YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError)


@dataclass(frozen=True)
class DataFolder:
    """The files of each split, sorted by name, and the class names that the card gives to label columns."""

    files: Mapping[str, tuple[Path, ...]]
    class_names: Mapping[str, tuple[str, ...]]


def read_folder(folder: Path, subset: str | None) -> DataFolder:
    """Return the splits of a folder laid out as on the Hub, from its card or else from its file and folder names.

    `subset` is one of the card's configurations. Raises `DataError` if the card cannot be read or names files outside
    the folder, if a link leads out of the folder, or if it is unclear which files are the data.
    """
    for path in sorted(folder.rglob("*")):
        if not lies_in(path, folder):
            inside = path.relative_to(folder)
            raise DataError(f"data.dataset: {folder}: {inside} is a link to a place outside it; give data.files")
    try:
        card = _card(folder)
        configs, infos = MetadataConfigs.from_dataset_card_data(card), DatasetInfosDict.from_dataset_card_data(card)
        name = subset or configs.get_default_config_name()
    except CARD_ERRORS as error:
        raise DataError(f"data.dataset: {folder / CARD}: {one_line(error)}; give data.files") from None
    if subset and subset not in configs:
        known = f"only {', '.join(configs)}" if configs else "and names no subsets"
        raise DataError(f"data.subset: {folder / CARD} has no {subset!r}, {known}")
    if configs and name is None:
        raise DataError(
            f"data.dataset: {folder / CARD} has several subsets; data.subset is one of {', '.join(configs)}"
        )
    config = configs.get(name, {}) if name else {}
    if unknown := set(config) - FOLLOWED:
        raise DataError(
            f"data.dataset: {folder / CARD}: sets {', '.join(sorted(unknown))} for its files, which distill does not "
            "support; save them in a format of docs/recipes.md, and give data.files"
        )
    files = _files(folder, _patterns(folder, config))
    info = infos.get(name or "default") or (next(iter(infos.values())) if len(infos) == 1 else None)
    features = (info.features if info else None) or {}
    names = {key: named for key, feature in features.items() if (named := class_names_of(feature))}
    return DataFolder(files, names)


def class_names_of(feature: Any) -> tuple[str, ...] | None:
    """Return the class names that a feature of datasets has, itself or in a list; None if it has none."""
    if isinstance(feature, List | LargeList):
        return class_names_of(feature.feature)
    return tuple(feature.names) if isinstance(feature, ClassLabel) else None


def _card(folder: Path) -> Any:
    if not (folder / CARD).is_file():
        return DatasetCardData()
    text = (folder / CARD).read_text(encoding="utf-8-sig", errors="replace")
    return DatasetCard(text, ignore_metadata_errors=False).data


def _patterns(folder: Path, config: Mapping[str, Any]) -> dict[str, list[str]]:
    """The file name patterns of each split, relative to the folder."""
    try:
        if config.get("data_files"):
            patterns = {str(split): list(map(str, found)) for split, found in
                        sanitize_patterns(config["data_files"]).items()}  # fmt: skip
        else:
            inner = str(config.get("data_dir") or "")
            _check_place(folder, inner)
            found = get_data_patterns((folder / inner).resolve().as_posix())
            patterns = {
                str(split): [f"{inner}/{one}" if inner else one for one in ones] for split, ones in found.items()
            }
    except EmptyDatasetError:
        raise DataError(f"data.dataset: {folder}: holds no data files") from None
    except CARD_ERRORS as error:
        raise DataError(f"data.dataset: {folder / CARD}: {one_line(error)}; give data.files") from None
    for one in (one for ones in patterns.values() for one in ones):
        _check_place(folder, one)
    return patterns


def _check_place(folder: Path, place: str) -> None:
    # A scheme can hold more than letters (git+ssh:), and fsspec accepts "://" and "::" anywhere.
    is_address = re.match(r"[/~\\]|[\w.+-]+:", place) or "://" in place or "::" in place
    if is_address or ".." in re.split(r"[/\\]", place):
        raise DataError(f"data.dataset: {folder}: its {CARD} names data outside it: {place}; give data.files")


def _files(folder: Path, patterns: Mapping[str, Sequence[str]]) -> dict[str, tuple[Path, ...]]:
    root, found = folder.resolve(), {}
    for split, ones in patterns.items():
        paths = {Path(path) for one in ones for path in _resolved(one, root)}
        if outside := [path for path in paths if not lies_in(path, root)]:
            raise DataError(f"data.dataset: {folder}: {min(outside)} is outside it; give data.files")
        if packed := sorted(path for path in paths if path.is_file() and packed_with(path)):
            inside = packed[0].relative_to(root)
            raise DataError(
                f"data.dataset: {folder}: {inside} is packed with {packed_with(packed[0])}; unpack it or move it away"
            )
        if paths := {path for path in paths if path.suffix.lower() in READERS and not _is_note(path)}:
            found[split] = tuple(folder / path.relative_to(root) for path in sorted(paths))
    kinds = sorted({path.suffix.lower() for paths in found.values() for path in paths})
    if len(kinds) > 1:
        raise DataError(
            f"data.dataset: {folder}: holds {' and '.join(kinds)} files; say which are the data: data.files"
        )
    if not found:
        raise DataError(f"data.dataset: {folder}: holds no data files ({', '.join(READERS)})")
    return found


def _is_note(path: Path) -> bool:
    """Say whether datasets wrote the file beside the data: a description, or the cached result of a `map`."""
    return path.name in NOT_DATA or (path.suffix == ".arrow" and path.name.startswith(("cache-", "tmp")))


def _resolved(pattern: str, root: Path) -> list[str]:
    try:
        return resolve_pattern(pattern, base_path=root.as_posix())
    except FileNotFoundError:
        return []
