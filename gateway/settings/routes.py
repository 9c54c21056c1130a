"""Settings of the routes that the gateway only passes on, and of users' data."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from gateway.settings.base import Model
from gateway.settings.units import SIZES

_PREFIX = re.compile(r"^(/api)?/(?!api/?$)[^\s?#*/]+(/[^\s?#*/]+)*/?$")
_ROW = re.compile(r"^((GET|POST|PUT|PATCH|DELETE) )?/[^\s?#*]+$")


class RouteSettings(Model):
    """An operator's rows in the table of roles: ``/prefix``, or ``POST /prefix`` for one method.

    Users may call the paths in `users`, admins alone the paths in `admins`. `unknown_reads` is the role for GET of a
    path that neither these rows nor the table name: mostly routes of custom nodes. `sticky` are prefixes of paths
    behind which custom nodes keep state in their process.
    """

    users: tuple[str, ...] = ()
    admins: tuple[str, ...] = ()
    unknown_reads: Literal["users", "admins"] = "users"
    sticky: tuple[str, ...] = ()

    @field_validator("users", "admins")
    @classmethod
    def _check_rows(cls, rows: tuple[str, ...]) -> tuple[str, ...]:
        for row in rows:
            if not _ROW.match(row):
                raise ValueError(
                    f"{row!r} is not a path such as /pysssss, nor a method and a path such as POST /rgthree"
                )
        return rows

    @field_validator("sticky")
    @classmethod
    def _check_sticky(cls, prefixes: tuple[str, ...]) -> tuple[str, ...]:
        for prefix in prefixes:
            if not _PREFIX.match(prefix):
                raise ValueError(f"{prefix!r} is not a path such as /api/etn")
        return prefixes


class UserDataSettings(Model):
    """Bounds of the workflows and settings that an isolated tenant's web UI saves: bytes and files of each tenant."""

    quota: Annotated[int, Field(ge=0), *SIZES] = 256 * 1024 * 1024
    max_files: Annotated[int, Field(ge=0)] = 10_000
