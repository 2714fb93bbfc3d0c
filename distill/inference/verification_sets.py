"""Verify that a machine computes the logits of an export: token ids in its folder, with the logits they should get.

On some processors an int8 graph computes other logits than on the one that proved it, and nothing complains: without
VNNI, x86 adds two int8 products in 16 bits, which may saturate. The token ids are drawn at random, so they tell nothing
about anybody's texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import TypedDict

from distill.data.encoding import special_tokens
from distill.decisions import Thresholds, answers_of, are_equal
from distill.errors import FolderError, ModelError, one_line
from distill.inference.sessions import Batch, Session
from distill.machine.cpu import UNKNOWN, cpu_kind
from distill.models.config import TOKEN_TYPES
from distill.models.weights import weight_files
from distill.storage.checksums import check_whole, sha256
from distill.storage.files import read_json, write_json, write_text
from distill.storage.records import checked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from distill.inference.exported import ExportedTokenizer

VERIFICATION, SCRIPT = "verification.json", "verify.py"
SETS, FEW_SETS = 64, 8
SHORTEST, LONGEST = 3, 128  # tokens, so that all sets together take no more than a second or two
# An error counts if it is more than so many times the error where the export was proved, plus a share of the spread of
# the logits. A saturated product is off by more; another order of the same sums is not.
TIMES, SHARE, LEAST = 2.0, 0.05, 1e-4
OPENVINO_SHARE = 0.3  # it computes what is not int8 in bf16 or fp32, whichever is faster on the machine


class _Set(TypedDict):
    input_ids: list[int]
    token_type_ids: list[int]
    torch: list[float]
    proved: list[float]


class _Verification(TypedDict):
    format: str
    made_on: str
    files: dict[str, str]
    allowed_error: float
    sets: list[_Set]


@dataclass(frozen=True)
class Verdict:
    """What `verify` found: how far this machine's logits are from torch's, and how far they were where it was proved.

    Errors are root mean squares over the logits of all sets. `same_answers` of the `sets` have the answer that torch
    gives. `reason` is None if the export is verified.
    """

    format: str
    sets: int
    same_answers: int
    error: float
    proved_error: float
    allowed_error: float
    reason: str | None

    def as_json(self) -> dict[str, Any]:
        """Return it as an object."""
        return asdict(self)


def draw_sets(
    tokenizer: PreTrainedTokenizerBase | ExportedTokenizer, max_tokens: int, embeddings: float, *, pairs: bool
) -> list[Batch]:
    """Return `SETS` batches of one text each, of random tokens of the `embeddings` between the special ones.

    Each has ids, mask and token types, int64, (1, tokens). They become longer, up to `max_tokens` or `LONGEST`. Types
    are zero unless the graph reads `pairs`, because only then it has that input.
    """
    rng = np.random.default_rng(0)
    known = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False).values()
    # Some architectures find the end of a text, or a position, by the padding token.
    able = sorted(token for token in {*known} if token < embeddings and token != tokenizer.pad_token_id)
    before, after = special_tokens(tokenizer)
    most = max(SHORTEST, min(max_tokens, LONGEST) - len(before) - len(after))
    sets = []
    for length in np.geomspace(SHORTEST, most, SETS).round().astype(int):
        drawn = rng.choice(able, length).tolist()
        ids = np.asarray([[*before, *drawn, *after]], np.int64)
        types = (pairs & (np.arange(ids.shape[1]) > ids.shape[1] // 2)).astype(np.int64)[None]
        sets.append((ids, np.ones_like(ids), types))
    return sets


def logits_of(session: Session, sets: Sequence[Batch]) -> np.ndarray:
    """Return the logits of each set, float32, (sets, classes)."""
    return np.concatenate([session.run(*one) for one in sets])


def write_verification(
    folder: Path, format: str, sets: Sequence[Batch], of_torch: np.ndarray, proved: np.ndarray, *, on_cpu: bool
) -> None:
    """Write the sets with the logits of torch and those that the export has here; for ONNX also verify.py.

    That script needs only onnxruntime and numpy. Sets whose logits overflow are left out. Raises `ModelError` if the
    logits of all sets overflow.
    """
    finite = np.isfinite(of_torch).all(axis=1) & np.isfinite(proved).all(axis=1)
    if not finite.any():
        raise ModelError(f"{format}: its logits overflow on all {len(sets)} sets of random tokens")
    sets = [one for one, is_finite in zip(sets, finite, strict=True) if is_finite]
    of_torch, proved = of_torch[finite], proved[finite]
    found: _Verification = {
        "format": format,
        "made_on": cpu_kind() if on_cpu else "cuda",
        "files": {path.name: sha256(path) for path in weight_files(str(folder))},
        "allowed_error": _allowed(format, of_torch, proved),
        "sets": [
            {"input_ids": ids[0].tolist(), TOKEN_TYPES: types[0].tolist(), "torch": wanted.tolist(),
             "proved": had.tolist()}
            for (ids, _, types), wanted, had in zip(sets, of_torch, proved, strict=True)
        ],
    }  # fmt: skip
    write_json(folder / VERIFICATION, found)
    if format.startswith("onnx-"):
        write_text(folder / SCRIPT, (resources.files("distill") / "templates" / SCRIPT).read_text(encoding="utf-8"))


def verify(folder: Path, session: Session, thresholds: Thresholds, *, every: int = 1) -> Verdict:
    """Compute every n-th set in `session` and compare; `thresholds` are those of the model.

    Raises `FolderError` if the folder has no sets, or damaged ones.
    """
    found = _read(folder)
    batches, of_torch, proved = _arrays(folder, found["sets"])
    allowed = _allowed(found["format"], of_torch, proved)
    batches, of_torch, proved = batches[::every], of_torch[::every], proved[::every]
    here = logits_of(session, batches)
    if here.shape != of_torch.shape:
        raise ModelError(f"{folder / VERIFICATION}: has {of_torch.shape[1]} classes, the model has {here.shape[1]}")
    error = _error(here, of_torch)
    same = int(are_equal(answers_of(here, thresholds), answers_of(of_torch, thresholds)).sum())
    changed = [path.name for path in weight_files(str(folder)) if found["files"].get(path.name) != sha256(path)]
    reason = None
    if changed:
        reason = f"{changed[0]} is not the file that was proved"
    elif not error <= allowed:  # NaN is no error below the bound either
        reason = (
            f"this machine computes other logits than the one that proved it: error {error:.3g} ({allowed:.3g} "
            f"allowed), and the answers of {len(batches) - same} of {len(batches)} texts differ"
        )
    return Verdict(found["format"], len(batches), same, error, _error(proved, of_torch), allowed, reason)


def check_new_cpu(folder: Path, session: Session, thresholds: Thresholds) -> None:
    """Raise `ModelError` if the export was proved on another kind of CPU and this one computes other logits.

    Only a few sets are computed, so it takes milliseconds with a small model; on the kind of CPU that proved it, none.
    """
    if not (folder / VERIFICATION).is_file() or session.device != "cpu":
        return
    kind = cpu_kind()
    if _read(folder)["made_on"] == kind and not kind.endswith(UNKNOWN):
        return
    if reason := verify(folder, session, thresholds, every=SETS // FEW_SETS).reason:
        raise ModelError(
            f"{folder}: {reason}", hint="use onnx-fp32, or export on this kind of machine; `distill verify` shows more"
        )


def _read(folder: Path) -> _Verification:
    check_whole(folder, (VERIFICATION,))
    return checked(_Verification, read_json(folder / VERIFICATION), str(folder / VERIFICATION))


def _arrays(folder: Path, sets: Sequence[_Set]) -> tuple[list[Batch], np.ndarray, np.ndarray]:
    """Return the batches, torch's logits and the proved ones; raises `FolderError` if they do not fit together."""
    try:
        ids = [np.asarray([one["input_ids"]], np.int64) for one in sets]
        types = [np.asarray([one["token_type_ids"]], np.int64) for one in sets]
        of_torch, proved = (np.asarray([one[name] for one in sets], np.float32) for name in ("torch", "proved"))
        fit = of_torch.ndim == 2 and of_torch.shape == proved.shape and of_torch.size
        if not fit or any(one.shape != other.shape or not one.size for one, other in zip(ids, types, strict=True)):
            raise ValueError("the sets have different sizes")
        if not (np.isfinite(of_torch).all() and np.isfinite(proved).all()):
            raise ValueError("a logit is not finite")
    except (ValueError, OverflowError) as error:
        raise FolderError(f"{folder / VERIFICATION}: damaged: {one_line(error)}") from None
    return [(one, np.ones_like(one), kinds) for one, kinds in zip(ids, types, strict=True)], of_torch, proved


def _allowed(format: str, of_torch: np.ndarray, proved: np.ndarray) -> float:
    share = OPENVINO_SHARE if format.startswith("openvino-") else SHARE
    return max(LEAST, TIMES * _error(proved, of_torch) + share * _error(of_torch, of_torch.mean(axis=0)))


def _error(logits: np.ndarray, others: np.ndarray) -> float:
    return float(np.sqrt(((logits.astype(np.float64) - others) ** 2).mean()))
