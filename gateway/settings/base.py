"""Base of all models of the configuration."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from gateway.settings.units import SIZES, TIMES

YEAR = 31_536_000
Seconds = Annotated[float, Field(gt=0, le=86_400), *TIMES]
# A time of up to a year.
Period = Annotated[float, Field(gt=0, le=YEAR), *TIMES]
# A time without an upper bound: how long something is kept.
Age = Annotated[float, Field(gt=0), *TIMES]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Bytes = Annotated[int, Field(ge=1), *SIZES]
_LABEL_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}"
Label = Annotated[str, Field(pattern=f"^{_LABEL_PATTERN}$")]
_LABEL = re.compile(_LABEL_PATTERN)
# Requests have the same (gateway/jobs/routing/requirements.py); a test compares both.
_CONDITION = re.compile(rf"vram *(>=|<=|>|<|=) *[0-9]{{1,6}}(\.[0-9]{{1,3}})?|{_LABEL_PATTERN}")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")


def checked_name(name: str) -> str:
    """Return the name of a key or a tenant if it is well formed, because it stands in logs, metrics and paths.

    Raises:
        ValueError: the name holds other characters than letters, digits and ``. _ - @ +``, does not begin with a letter
            or digit, or is too long.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            "must be 1 to 64 letters, digits and . _ - @ + (it stands in logs, metrics and paths), "
            "the first a letter or digit"
        )
    return name


def checked_condition(condition: str) -> str:
    """Return a condition on a backend if it is well formed.

    Raises:
        ValueError: it is not.
    """
    if not _CONDITION.fullmatch(condition):
        raise ValueError(
            "must be a label, or vram with >=, >, <=, < or = and a number of GB, such as vram>=24; "
            f"found {condition[:60]!r}"
        )
    return condition


def is_label(condition: str) -> bool:
    """Return True if a well-formed condition is a label."""
    return _LABEL.fullmatch(condition) is not None


def checked_network(network: str) -> str:
    """Return a text if it is a network in CIDR form, or an address.

    Raises:
        ValueError: the text is neither.
    """
    try:
        ipaddress.ip_network(network)
    except ValueError as error:
        try:
            near = f"; did you mean {ipaddress.ip_network(network, strict=False)}?"
        except ValueError:
            near = ""
        raise ValueError(f"must be a network or an address, such as 10.0.0.0/8; found {network!r}{near}") from error
    return network


Name = Annotated[str, AfterValidator(checked_name)]
Network = Annotated[str, AfterValidator(checked_network)]


class Model(BaseModel):
    """A frozen section of the configuration. It refuses unknown settings. Errors repeat no value: it may be a key."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_yes_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse ``yes`` and ``on`` as a number or a text, because YAML reads them as true, which counts as 1."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise PydanticCustomError("unfit_bool", "not a boolean")
        return value
