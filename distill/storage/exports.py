"""Read a folder of exports: its file names, and the proof of each format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from distill.recipe.schema import FORMATS
from distill.storage.checksums import check_whole, damage_of
from distill.storage.files import read_json
from distill.storage.records import Number, checked

EXPORT_PROOFS = "export.json"  # in the folder of exports: the proof of each format that was tried, for other programs
PROOF = "proof.json"  # in the folder of a format, and sealed with it
FLIPPED = "flipped.jsonl"  # also there: the texts whose predicted class the format changed


class _Proof(TypedDict):
    passed: bool
    reason: str | None
    device: str
    texts_per_second: Number | None


def read_proofs(exports: Path) -> dict[str, dict[str, Any]]:
    """Return the proof of each format in a folder of exports; raises `FolderError` if one is damaged.

    The proof of an exported format is in the format's own folder and sealed with it, so an interrupted export does not
    spoil the others. A format that failed its proof has no folder; its proof is in export.json.
    """
    listed = checked(dict[str, _Proof], read_json(exports / EXPORT_PROOFS), str(exports / EXPORT_PROOFS))
    proofs = {}
    for name in FORMATS:
        if (exports / name / PROOF).is_file():
            check_whole(exports / name, (PROOF,))
            proofs[name] = checked(_Proof, read_json(exports / name / PROOF), str(exports / name / PROOF))
        elif name in listed and not listed[name]["passed"]:
            proofs[name] = listed[name]
    return proofs


def is_exported(exports: Path, name: str) -> bool:
    """Say whether a format is there, undamaged, passed its proof, and is listed with that proof in export.json."""
    if damage_of(exports / name) is not None or not (exports / EXPORT_PROOFS).is_file():
        return False
    proof, listed = read_proofs(exports).get(name, {}), read_json(exports / EXPORT_PROOFS)
    return proof.get("passed", False) and listed.get(name) == proof
