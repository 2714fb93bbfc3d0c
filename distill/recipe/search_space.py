"""The recipe section `sweep`: keys of one stage to search over, each with the values that a trial may take."""

from __future__ import annotations

import itertools
import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_serializer, model_validator

from distill.errors import did_you_mean
from distill.recipe.section import NonEmptyStr, Positive, Section
from distill.recipe.training_fields import SWEEPABLE


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**53:
        raise ValueError(f"wants a number, got {value!r}")
    return value


Number = Annotated[Any, BeforeValidator(_number)]


class Space(Section):
    """The values of one key: one of `values`, which the recipe writes as a list, or a number from `low` to `high`.

    If both ends are whole numbers, so are the values. `log` draws from a logarithmic scale: as many values between 1e-5
    and 1e-4 as between 1e-4 and 1e-3.
    """

    values: tuple[Any, ...] | None = None
    low: Number = None
    high: Number = None
    log: bool = False

    @model_validator(mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        if not isinstance(value, list | dict):
            raise ValueError(f"wants a list of values, or {{low: ..., high: ...}}, got {value!r}")
        return {"values": tuple(value)} if isinstance(value, list) else value  # see schema.Student._rising

    @model_validator(mode="after")
    def _chooses(self) -> Space:
        if self.values is not None:
            if len(self.values) < 2 or any(one == other for one, other in itertools.combinations(self.values, 2)):
                raise ValueError(f"wants two values or more, each once, got {list(self.values)}")
            if {"low", "high", "log"} & self.model_fields_set:
                raise ValueError("wants either a list of values or low and high")
        elif self.low is None or self.high is None:
            raise ValueError("wants a list of values, or both low and high")
        elif self.low >= self.high:
            raise ValueError(f"wants low below high, got {self.low} and {self.high}")
        elif self.log and self.low <= 0:
            raise ValueError(f"wants low above 0 if log is true, got {self.low}")
        elif self.is_whole and self.high - self.low == 1:
            low, high = self.low, self.high
            raise ValueError(f"wants [{low}, {high}] for these two, or {low}.0 and {high}.0 for the range between")
        return self

    @model_serializer
    def _shown(self) -> Any:
        if self.values is not None:
            return list(self.values)
        return {"low": self.low, "high": self.high} | ({"log": True} if self.log else {})

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are drawn from `low` to `high`."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def candidates(self) -> dict[str | int, Any]:
        """Return the values to validate for the whole sweep: each by its index, or both ends by name."""
        return {"low": self.low, "high": self.high} if self.values is None else dict(enumerate(self.values))


def _can_be_swept(key: str) -> str:
    stage, _, rest = key.partition(".")
    section, _, name = rest.partition(".")
    if stage in ("teacher", "student") and section == "training" and name:
        if name not in SWEEPABLE:
            raise ValueError(f"cannot be swept; {did_you_mean(name, SWEEPABLE, 'of training, these can:')}")
    elif not re.fullmatch(r"(teacher|student)\.attention_dropout|student\.loss\..+", key):
        raise ValueError(
            "cannot be swept: trials share the data, the model and the teacher's logits; these keys can: "
            "STAGE.training.FIELD, STAGE.attention_dropout, student.loss.KEY"
        )
    return key


class Sweep(Section):
    """What `distill sweep` searches: dotted `keys` of one stage, each with its space, in this many `trials`."""

    keys: Annotated[dict[Annotated[str, AfterValidator(_can_be_swept)], Space], Field(min_length=1)]
    trials: Positive = 20
    output: NonEmptyStr = "./sweep"

    @model_validator(mode="after")
    def _none_within_another(self) -> Sweep:
        for outer, inner in itertools.permutations(self.keys, 2):
            if inner.startswith(f"{outer}."):
                raise ValueError(f"wants keys that do not contain each other, got {outer} and {inner}")
        return self

    @model_validator(mode="after")
    def _one_stage(self) -> Sweep:
        if len({key.partition(".")[0] for key in self.keys}) > 1:
            raise ValueError(f"wants keys of one stage, teacher or student, got {', '.join(self.keys)}")
        return self

    @property
    def stage(self) -> Literal["teacher", "student"]:
        """The stage that all keys belong to."""
        return "teacher" if next(iter(self.keys)).startswith("teacher.") else "student"

    def combinations(self) -> list[dict[str, Any]] | None:
        """Return all combinations of the values, or None if there are more than `trials` or any key is a range."""
        values = [space.values for space in self.keys.values() if space.values is not None]
        if len(values) < len(self.keys) or math.prod(map(len, values)) > self.trials:
            return None
        return [dict(zip(self.keys, chosen, strict=True)) for chosen in itertools.product(*values)]
