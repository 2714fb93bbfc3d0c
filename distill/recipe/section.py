"""What all parts of a recipe share: frozen, strictly typed, no unknown keys."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Line = Annotated[str, Field(min_length=1)]


def _not_empty(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("wants one or more, got none")
    return values


NotEmpty = AfterValidator(_not_empty)  # unlike `min_length`, silent where what stands in it is wrong


class Section(BaseModel):
    """One part of a recipe; `"8"` is not 8, and a key that is not a field is an error."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)
