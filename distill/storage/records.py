"""Read JSON values back and check them against the types that distill writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from distill.errors import FolderError, one_line

Number = Annotated[float, Field(allow_inf_nan=False)]


def checked(kind: Any, value: Any, place: str) -> Any:
    """Return `value` if it has the keys and types of `kind`; else raise `FolderError` that names its `place`."""
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        fault = error.errors()[0]
        at = "".join(f"{key}: " for key in fault["loc"])
        rule = fault["msg"][0].lower() + fault["msg"][1:]
        raise FolderError(f"{place}: not as distill writes it: {at}{rule}, got {fault['input']!r:.80}") from None
    return value


def read_lines(path: Path, kind: Any) -> list[dict[str, Any]]:
    """Return the values in a file of JSON lines; raises `FolderError` with the line if one is not of `kind`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FolderError(f"{path}: cannot be read: {one_line(error)}") from None
    values = []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FolderError(f"{path}: line {number}: not JSON ({one_line(error)})") from None
        values.append(checked(kind, value, f"{path}: line {number}"))
    return values
