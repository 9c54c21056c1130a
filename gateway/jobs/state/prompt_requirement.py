"""Requirement of one prompt: the header X-Gateway-Require and `extra_data.gateway_require`. Pure.

If a prompt has both, all conditions of both must hold. `extra_data` keeps its own, as the client sent it. The journal
keeps both together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.jobs.routing.requirements import (
    MAX_CONDITIONS,
    MalformedRequirement,
    Requirement,
    parse_conditions,
    parse_requirement,
)
from gateway.jobs.state.prompt_bounds import Rejection, name_of, rejection

HEADER = "X-Gateway-Require"
# The key in extra_data.
NAME = "gateway_require"
# A prompt has the conditions of both.
_MAX_BOTH = 2 * MAX_CONDITIONS


def requirement_of(extra_data: Mapping[str, Any]) -> Requirement:
    """Return the requirement in a prompt's extra_data; no condition if it has none.

    Raises:
        Rejection: it is malformed.
    """
    given = extra_data.get(NAME)
    if given is None:
        return ()
    if not isinstance(given, str):
        raise _malformed(f"extra_data.{NAME}", f"it must be a text; got {name_of(given)}")
    return _parsed(f"extra_data.{NAME}", given)


def requirement_of_header(text: str) -> Requirement:
    """Return the requirement in the header of a request.

    Raises:
        Rejection: it is malformed.
    """
    return _parsed(HEADER, text)


def decode_requirement(text: Any) -> Requirement:
    """Return the requirement that the journal keeps. Leave it out if it is damaged."""
    if not isinstance(text, str) or not text:
        return ()
    try:
        return parse_conditions(text.split(",")[:_MAX_BOTH])
    except MalformedRequirement:
        return ()


def _parsed(where: str, text: str) -> Requirement:
    try:
        return parse_requirement(text)
    except MalformedRequirement as error:
        raise _malformed(where, str(error)) from error


def _malformed(where: str, details: str) -> Rejection:
    return rejection("invalid_requirement", f"{where} is no requirement", details)
