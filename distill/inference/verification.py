"""Verify exports on this machine: does it compute the logits with which they were proved (`distill verify`)?"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from distill.errors import FolderError
from distill.inference.classifier import identify, open_session
from distill.inference.runtimes import FOR_CPUS, can_run
from distill.inference.verification_sets import VERIFICATION, Verdict, verify
from distill.models.thresholds import thresholds_of
from distill.storage.run_folder import RunFolder

log = logging.getLogger("distill")


def verify_exports(folder: Path, *, device: str = "auto") -> Iterator[tuple[Path, Verdict]]:
    """Yield the folder and the verdict of an export, or of each export of a run or of a folder of exports.

    In a folder of exports, those whose runtime is missing are left out, and a warning names them. Raises `FolderError`
    if none is left, or if an export has no sets because an earlier version made it.
    """
    run = RunFolder(folder)
    if not (folder / VERIFICATION).is_file() and run.export.is_dir():
        folder = run.export
    if (folder / "config.json").is_file():
        yield folder, _verdict(folder, device)
        return
    exports = [path.parent for path in sorted(folder.glob("*/config.json"))]
    able = [path for path in exports if can_run(path.name, "cpu") and not (device == "cuda" and path.name in FOR_CPUS)]
    for path in exports:
        if path not in able:
            log.warning("verify: %s left out: its runtime is not installed, or runs on no such device", path.name)
    if not able:
        raise FolderError(f"{folder}: holds no export that runs here", hint="distill export MODEL makes some")
    for path in able:
        yield path, _verdict(path, device)


def _verdict(export: Path, device: str) -> Verdict:
    if not (export / VERIFICATION).is_file():
        raise FolderError(f"{export}: has no {VERIFICATION}", hint="distill export writes it beside each export")
    config, _, _ = identify(str(export))
    return verify(export, open_session(str(export), config, device), thresholds_of(config))
