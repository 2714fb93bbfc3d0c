"""What a report calls its models, and which color each has in its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

Rows = Sequence[Mapping[str, Any]]
STUDENT_COLOURS = ("student", "student-2", "student-3", "student-4")  # a fifth student is like the first


def model_names(measurements: Rows) -> dict[str, str]:
    """Return a name for each model folder: its role, or the folder's last name if several models have that role.

    If two of these folders have the same last name, theirs are the whole paths.
    """
    roles = {row["model"]: row["role"] for row in measurements}
    alone = [role for role in set(roles.values()) if list(roles.values()).count(role) == 1]
    last = [PurePath(model).name for model in roles]
    return {
        model: role if role in alone else name if name and last.count(name) == 1 else model
        for (model, role), name in zip(roles.items(), last, strict=True)
    }


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
