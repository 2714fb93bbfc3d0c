"""The processes that `torchrun` or `accelerate launch` started: which one this is, and what only one may do."""

from __future__ import annotations

import os
import sys

from distill.errors import UserError


def rank() -> int:
    """Return the number of this process among those that a launcher started; 0 where none did."""
    return int(os.environ.get("RANK") or 0)


def world_size() -> int:
    """Return the number of processes that a launcher started; 1 where none did."""
    return int(os.environ.get("WORLD_SIZE") or 1)


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
