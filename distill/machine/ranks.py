"""The processes that `torchrun` or `accelerate launch` started: which one this is, and what only one may do."""

from __future__ import annotations

import os
import sys

from distill.errors import UserError


def rank() -> int:
    """Return the number of this process among those that a launcher started; 0 where none did."""
    return _number("RANK", 0)


def world_size() -> int:
    """Return the number of processes that a launcher started; 1 where none did."""
    return _number("WORLD_SIZE", 1)


def check_launcher() -> None:
    """Raise `UserError` for what a launcher says, in the environment, that is no number of a process."""
    hint = "unset it, or start distill by torchrun or accelerate launch, which set it"
    for name, least in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", -1), ("LOCAL_WORLD_SIZE", 1)):
        if (text := os.environ.get(name)) and _number(name, least - 1) < least:
            raise UserError(f"{name}: wants a whole number, {least} or more, got {text!r:.50}", hint=hint)
    if rank() >= world_size():
        raise UserError(f"RANK: wants a number below WORLD_SIZE, which is {world_size()}, got {rank()}", hint=hint)


def _number(name: str, default: int) -> int:
    try:
        return int(os.environ.get(name) or default)
    except ValueError:  # `check_launcher` says so
        return default


def refuse_ranks(command: str) -> None:
    """Raise `UserError` where a launcher started several processes of a command that is for one."""
    if world_size() > 1:
        raise UserError(
            f"{command}: runs in one process, and {world_size()} were launched",
            hint="launch several for teacher, student and run; start the others as they are",
        )


def leave() -> None:
    """End this process's part in the group, which torch warns of at exit otherwise."""
    if "torch.distributed" in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
