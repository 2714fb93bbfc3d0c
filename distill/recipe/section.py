"""What all parts of a recipe share: frozen, strictly typed, no unknown keys."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Line = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """One part of a recipe; `"8"` is not 8, and a key that is not a field is an error."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)
