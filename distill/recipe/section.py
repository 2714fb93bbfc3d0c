"""The base class of all sections of a recipe, and types that several sections use."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
NonEmptyStr = Annotated[str, Field(min_length=1)]


def _not_empty(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("wants one or more, got none")
    return values


NotEmpty = AfterValidator(_not_empty)  # unlike `min_length`, adds no second complaint if a value in it is wrong


class Section(BaseModel):
    """One section of a recipe: frozen and strictly typed (`"8"` is not 8); unknown keys are errors."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)
