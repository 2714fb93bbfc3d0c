"""What a report calls its models, and which color each has in its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

Rows = Sequence[Mapping[str, Any]]
STUDENT_COLOURS = ("student", "student-2", "student-3", "student-4")  # a fifth student is like the first


def model_names(measurements: Rows) -> dict[str, str]:
    """Return a name for each model folder: its role, or the end of its path if several models have that role.

    The end is the folder's own name, with as many of its parents as tell it from the others.
    """
    roles = {row["model"]: row["role"] for row in measurements}
    alone = [role for role in set(roles.values()) if list(roles.values()).count(role) == 1]
    return {model: role if role in alone else _end_of(model, list(roles)) for model, role in roles.items()}


def _end_of(model: str, models: Sequence[str]) -> str:
    parts = PurePath(model).parts
    for count in range(1, len(parts) + 1):
        if sum(PurePath(other).parts[-count:] == parts[-count:] for other in models) == 1:
            return str(PurePath(*parts[-count:]))
    return model


def row_names(measurements: Rows) -> list[str]:
    """Return a name for each measurement: its model and format, and its device if there are several."""
    names = model_names(measurements)
    several = len({row["device"] for row in measurements}) > 1
    return [
        " ".join(
            [
                names[row["model"]],
                *([row["format"]] if row["role"] != "baseline" else []),
                *([row["device"]] if several else []),
            ]
        )
        for row in measurements
    ]


def model_colours(measurements: Rows) -> dict[str, str]:
    """Return the name of a color for each model folder: its role, and one of its own for each student."""
    students = list(dict.fromkeys(row["model"] for row in measurements if row["role"] == "student"))
    own = {model: STUDENT_COLOURS[index % len(STUDENT_COLOURS)] for index, model in enumerate(students)}
    return own | {row["model"]: row["role"] for row in measurements if row["model"] not in own}
