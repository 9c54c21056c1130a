"""What all models of the configuration share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Bytes = Annotated[int, Field(ge=1)]


class Model(BaseModel):
    """Frozen, without room for settings that do not exist. Errors don't repeat what was given: it may be a key."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
