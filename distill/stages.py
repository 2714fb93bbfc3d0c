"""The name that `distill.commands` had until version 0.1; it goes in the next."""

from distill.commands import (
    check,
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

__all__ = [
    "check", "convert", "doctor", "export", "inspect", "kept_logits", "predict", "report", "run", "student", "sweep",
    "teacher",
]  # fmt: skip
