"""The processes (ranks) that `torchrun` or `accelerate launch` started."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from typing import NoReturn

from distill.errors import UserError


def rank() -> int:
    """Return the rank of this process; 0 without a launcher."""
    return _number("RANK", 0)


def world_size() -> int:
    """Return the number of processes that a launcher started; 1 without a launcher."""
    return _number("WORLD_SIZE", 1)


def check_launcher() -> None:
    """Raise `UserError` if one of the launcher's environment variables is not a valid number."""
    hint = "unset it, or start distill by torchrun or accelerate launch, which set it"
    for name, least in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", -1), ("LOCAL_WORLD_SIZE", 1)):
        if (text := os.environ.get(name)) and _number(name, least - 1) < least:
            raise UserError(f"{name}: wants a whole number, {least} or more, got {text!r:.50}", hint=hint)
    if rank() >= world_size():
        raise UserError(f"RANK: wants a number below WORLD_SIZE, which is {world_size()}, got {rank()}", hint=hint)


def _number(name: str, default: int) -> int:
    try:
        return int(os.environ.get(name) or default)
    except ValueError:  # `check_launcher` raises the error
        return default


def refuse_ranks(command: str) -> None:
    """Raise `UserError` if a launcher started several processes of a command that runs in one."""
    if world_size() > 1:
        raise UserError(
            f"{command}: runs in one process, but {world_size()} were launched",
            hint="use a launcher only for teacher, student and run",
        )


def leave() -> None:
    """Leave torch's process group; without this, torch prints a warning at exit."""
    if "torch.distributed" in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


def is_launched() -> bool:
    """Say whether torchrun, or accelerate launch by means of it, started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def end_rank(code: int) -> NoReturn:
    """End this process after its exit functions, but without ending Python's and torch's threads one by one.

    While they end, a thread of torch 2.13's gloo sometimes aborts the process, and the launcher then reports a failure
    of a run that is complete.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
