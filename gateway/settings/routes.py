"""Settings of the routes that the gateway only passes on, and of users' data."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from gateway.settings.base import Model
from gateway.settings.units import SIZES

_ROW = re.compile(r"^((GET|POST|PUT|PATCH|DELETE) )?/[^\s?#*]+$")


class RouteSettings(Model):
    """An operator's rows in the table of roles: ``/prefix``, or ``POST /prefix`` for one method.

    `users` may be called by users, `admins` by admins alone. `unknown_reads` says who may GET what neither this nor the
    table names: routes of custom nodes, mostly.
    """

    users: tuple[str, ...] = ()
    admins: tuple[str, ...] = ()
    unknown_reads: Literal["users", "admins"] = "users"

    @field_validator("users", "admins")
    @classmethod
    def _check_rows(cls, rows: tuple[str, ...]) -> tuple[str, ...]:
        for row in rows:
            if not _ROW.match(row):
                raise ValueError(
                    f"{row!r} is not a path such as /pysssss, nor a method and a path such as POST /rgthree"
                )
        return rows


class UserDataSettings(Model):
    """What an isolated tenant's web UI saves (workflows, settings): bytes and files that each tenant may have."""

    quota: Annotated[int, Field(ge=0), *SIZES] = 256 * 1024 * 1024
    max_files: Annotated[int, Field(ge=0)] = 10_000
