"""The name that `distill.commands` had until version 0.1; it goes in the next."""

from distill.commands import (
    check,
    check_models,
    check_trackers,
    convert,
    doctor,
    export,
    inspect,
    kept_logits,
    predict,
    report,
    run,
    student,
    sweep,
    teacher,
)
from distill.storage.contents import find_recipe, text_column_of

__all__ = [
    "check",
    "check_models",
    "check_trackers",
    "convert",
    "doctor",
    "export",
    "find_recipe",
    "inspect",
    "kept_logits",
    "predict",
    "report",
    "run",
    "student",
    "sweep",
    "teacher",
    "text_column_of",
]
