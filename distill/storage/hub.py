"""A model hub: whether a model of it is here already, and a finished model to it, with nothing else of its folder."""

from __future__ import annotations

import functools
import logging
import shlex
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, constants, get_session, get_token, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from distill.errors import UserError, one_line
from distill.storage.checksums import ANSWERING

log = logging.getLogger("distill")

HUB_SECONDS = 5.0
# Recipe, manifest and predictions name paths and rows of the machine that made them; checkpoints can be pickles.
PUBLIC = ("README.md", "learning_curve.png", "metrics.json", *ANSWERING)


def check_can_push(name: str) -> None:
    """Raise `UserError` where nothing could be pushed to `name`: before hours of work, not after."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError(f"--push-to-hub {name}: wants NAME or OWNER/NAME, of letters, digits, - _ and .") from None
    if constants.is_offline_mode():
        raise UserError(f"--push-to-hub {name}: HF_HUB_OFFLINE is set", hint="unset HF_HUB_OFFLINE")
    if not get_token():
        raise UserError(f"--push-to-hub {name}: no token is set", hint="hf auth login, or HF_TOKEN=...")


def push(folder: Path, name: str, *, within: str | None = None) -> str:
    """Upload a model folder to the repository `name` (in it, to the folder `within`); return its address.

    A repository that is not there yet is made, private. Raises `UserError` where the hub refuses or cannot be reached.
    """
    files = [path.name for path in folder.iterdir() if path.is_file() and any(fnmatch(path.name, p) for p in PUBLIC)]
    api = HfApi()
    try:
        repository = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository.repo_id, folder_path=folder, path_in_repo=within, allow_patterns=files,
            commit_message=f"Upload {within or folder.absolute().name} with distill",
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - whatever its HTTP library raises, no traceback after hours of work
        included = [part for file in files for part in ("--include", file)]
        later = shlex.join(["hf", "upload", name, str(folder), within or ".", "--private", *included])
        raise UserError(f"--push-to-hub {name}: {one_line(error)}", hint=f"{folder} is whole; later: {later}") from None
    log.info("pushed to %s (private, unless it was there before)", repository)
    return str(repository)


def ask_hub() -> str | None:
    """Return why the hub does not answer, in one line; None if it does, or if HF_HUB_OFFLINE says not to ask.

    It is asked once in a process. If it cannot be reached at all, libraries are told so, as by HF_HUB_OFFLINE=1: they
    then take what their caches hold and give up at once, where each of them would try again for half a minute.
    """
    return None if constants.is_offline_mode() else _asked()


@functools.cache
def _asked() -> str | None:
    try:
        answer = get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except Exception as error:  # noqa: BLE001 - whatever its HTTP library raises: not reachable is all there is to say
        constants.HF_HUB_OFFLINE = True
        reason = one_line(error)
        log.warning("hub: %s cannot be reached (%.80s): only what is here can be had", constants.ENDPOINT, reason)
        return reason
    try:
        answer.raise_for_status()
    except Exception as error:  # noqa: BLE001 - as above; a mirror may refuse this and have the model all the same
        return one_line(error)
    return None


def is_here(name: str) -> bool:
    """Say whether a model is on this disk: a folder, or a Hub name whose configuration is in the cache."""
    try:
        return Path(name).is_dir() or isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:  # no name of a model
        return False
