"""Verify exports on this machine: does it compute the logits with which they were proved (`distill verify`)?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distill.errors import FolderError
from distill.inference.classifier import identify, open_session
from distill.inference.verification_sets import VERIFICATION, Verdict, verify
from distill.models.thresholds import thresholds_of


def verify_exports(folder: Path, *, device: str = "auto") -> Iterator[tuple[Path, Verdict]]:
    """Yield the folder and the verdict of an export, or of each export in a folder of exports.

    Raises `FolderError` if there is none, or if an export has no sets because an earlier version made it.
    """
    exports = [folder] if (folder / "config.json").is_file() else sorted(folder.glob("*/config.json"))
    exports = [path if path.is_dir() else path.parent for path in exports]
    if not exports:
        raise FolderError(f"{folder}: holds no export", hint="distill export MODEL makes some in MODEL/export")
    for export in exports:
        if not (export / VERIFICATION).is_file():
            raise FolderError(f"{export}: has no {VERIFICATION}", hint="distill export writes it beside each export")
        config, _, _ = identify(str(export))
        yield export, verify(export, open_session(str(export), config, device), thresholds_of(config))
