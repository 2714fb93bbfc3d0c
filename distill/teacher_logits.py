"""What the teacher answers on the training texts, in the order of the data's classes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from distill.errors import ModelError


def align_labels(teacher_labels: Sequence[str], label_names: Sequence[str], *, teacher: str) -> list[int]:
    """Return for each of `label_names` the teacher's column of that name.

    A teacher that was never told its names ("LABEL_0", "LABEL_1", ...) is taken to use the data's order. Raises
    `ModelError` where the names or their number differ.
    """
    unnamed = all(re.fullmatch(r"LABEL_\d+", name) for name in teacher_labels)
    if unnamed and len(teacher_labels) == len(label_names):
        return list(range(len(label_names)))
    if set(teacher_labels) != set(label_names):
        raise ModelError(
            f"{teacher}: its classes ({', '.join(teacher_labels)}) are not the data's ({', '.join(label_names)})"
        )
    return [list(teacher_labels).index(name) for name in label_names]
