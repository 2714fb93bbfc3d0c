"""The model hub: whether it can be reached, whether a model is in the local cache, and uploads of finished models."""

from __future__ import annotations

import functools
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants, get_session, get_token, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from distill.errors import UserError, one_line
from distill.storage.checksums import ANSWERING, matches

log = logging.getLogger("distill")

HUB_SECONDS = 5.0
# The only files that are uploaded. Recipe, manifest and predictions hold paths and rows of the local machine, and a
# checkpoint can hold pickles.
PUBLIC = ("README.md", "learning_curve.png", "metrics.json", "verification.json", "verify.py", *ANSWERING)


def check_can_push(name: str) -> None:
    """Raise `UserError` if a push to `name` would fail; call it before hours of work."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError(f"--push-to-hub {name}: wants NAME or OWNER/NAME, made of letters, digits, - _ and .") from None
    if constants.is_offline_mode():
        raise UserError(f"--push-to-hub {name}: HF_HUB_OFFLINE is set", hint="unset HF_HUB_OFFLINE")
    if not get_token():
        raise UserError(f"--push-to-hub {name}: no token is set", hint="hf auth login, or HF_TOKEN=...")


def push(folder: Path, name: str, *, within: str | None = None, files: Sequence[str] | None = None) -> str:
    """Upload the public files of a model folder to the repository `name`; return its address.

    `files` names them, by default those of `PUBLIC`. They go to the repository's folder `within`, or to its root. If
    the repository does not exist, it is created as private. Raises `UserError` if the hub refuses or cannot be reached.
    """
    if files is None:
        files = [path.name for path in folder.iterdir() if path.is_file() and matches(path.name, PUBLIC)]
    api = HfApi()
    try:
        repository = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository.repo_id, folder_path=folder, path_in_repo=within, allow_patterns=list(files),
            commit_message=f"Upload {within or folder.absolute().name} with distill",
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - HTTP libraries raise many kinds, and hours of work must not end in a traceback
        included = [part for file in files for part in ("--include", file)]
        later = shlex.join(["hf", "upload", name, str(folder), within or ".", "--private", *included])
        hint = f"the model in {folder} is complete; to upload it later: {later}"
        raise UserError(f"--push-to-hub {name}: {one_line(error)}", hint=hint) from None
    log.info("pushed to %s (private, unless it existed before)", repository)
    return str(repository)


def ask_hub() -> str | None:
    """Return in one line why the hub does not answer; None if it answers, or if HF_HUB_OFFLINE is set.

    A process asks once. If the hub cannot be reached, the process goes offline as with HF_HUB_OFFLINE=1. Libraries then
    use their caches at once; otherwise each of them would retry for half a minute.
    """
    return None if constants.is_offline_mode() else _asked()


@functools.cache
def _asked() -> str | None:
    try:
        answer = get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except Exception as error:  # noqa: BLE001 - HTTP libraries raise many kinds, and all of them mean "not reachable"
        constants.HF_HUB_OFFLINE = True
        reason = one_line(error)
        log.warning("hub: %s cannot be reached (%.80s): using local files only", constants.ENDPOINT, reason)
        return reason
    try:
        answer.raise_for_status()
    except Exception as error:  # noqa: BLE001 - as above; stay online, since a mirror may refuse this request and still have the model
        return one_line(error)
    return None


def is_here(name: str) -> bool:
    """Say whether a model is on this disk: as a folder, or as a Hub model whose configuration is in the cache."""
    try:
        return Path(name).is_dir() or isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:  # not a valid model name
        return False
