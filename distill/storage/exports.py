"""A folder of exports: the names of its files, and the proofs in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from distill.recipe.schema import FORMATS
from distill.storage.checksums import check_whole, damage_of
from distill.storage.files import read_json
from distill.storage.records import Number, checked

EXPORT_PROOFS = "export.json"  # in a folder of exports: of each format that was tried, the proof, for others to read
PROOF = "proof.json"  # in a format's own folder, and sealed with it
FLIPPED = "flipped.jsonl"  # there too: the texts whose label the format changed


class _Proof(TypedDict):
    passed: bool
    reason: str | None
    device: str
    texts_per_second: Number | None


def read_proofs(exports: Path) -> dict[str, dict[str, Any]]:
    """Return the proof of each format in a folder of exports; raises `FolderError` if one is damaged.

    The proof of a format that is there lies in its folder, sealed with it, so an export that was interrupted spoils
    none of the others. Those that failed have no folder, and are told by export.json.
    """
    said = checked(dict[str, _Proof], read_json(exports / EXPORT_PROOFS), str(exports / EXPORT_PROOFS))
    proofs = {}
    for name in FORMATS:
        if (exports / name / PROOF).is_file():
            check_whole(exports / name, (PROOF,))
            proofs[name] = checked(_Proof, read_json(exports / name / PROOF), str(exports / name / PROOF))
        elif name in said and not said[name]["passed"]:
            proofs[name] = said[name]
    return proofs


def is_exported(exports: Path, name: str) -> bool:
    """Say whether a format is there, whole and proved, and export.json says so too."""
    if damage_of(exports / name) is not None or not (exports / EXPORT_PROOFS).is_file():
        return False
    proof, said = read_proofs(exports).get(name, {}), read_json(exports / EXPORT_PROOFS)
    return proof.get("passed", False) and said.get(name) == proof
