"""Deprecated alias of `distill.commands`; it will be removed in the next version."""

from typing import Any

from distill import commands
from distill.storage import contents


def __getattr__(name: str) -> Any:
    return getattr(contents if name == "text_columns_of" else commands, name)
