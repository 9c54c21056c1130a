"""The commands ``keys …``: make a key for the configuration, or manage a running gateway's keys by its admin API."""

from __future__ import annotations

import json
import re
import time
from typing import Any
from urllib.parse import quote

import click

from gateway.cli.running_gateway import Target, ask, url_option
from gateway.cli.terminal import print_table
from gateway.settings.base import checked_name
from gateway.telemetry.times import iso
from gateway.tenants.keys import Role, digest_of, mint
from gateway.tenants.lifetimes import NoTime, time_of

# Printed with a key for the configuration, because its user may expect to revoke it later.
_FILE_KEY = """A key in the file holds until it is taken out and the gateway is restarted. One that is made in a
running gateway's store, with --url, can be rotated and revoked while it runs."""


@click.group()
def keys() -> None:
    """Make a key; list, rotate and revoke the keys of a running gateway."""


def _name(_: click.Context, __: click.Parameter, value: str) -> str:
    try:
        return checked_name(value) if value else value
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _expires(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """Return the expiry in ISO 8601, also if it was given as a duration."""
    if value is None:
        return None
    try:
        expires, now = time_of(value, time.time()), time.time()
    except NoTime as error:
        raise click.BadParameter(str(error)) from error
    if expires <= now:
        raise click.BadParameter("is in the past")
    return iso(expires)


@keys.command()
@click.argument("name", callback=_name)
@click.option("--role", type=click.Choice([str(role) for role in Role]), default="user", show_default=True)
@click.option("--tenant", default="", callback=_name, help="Whose jobs and files.  [default: the key's name]")
@click.option("--expires", default=None, callback=_expires, metavar="WHEN", help="30d, 12h, or 2026-12-24.")
@url_option(required=False)
def create(name: str, role: str, tenant: str, expires: str | None, target: Target | None) -> None:
    """Make a key and print it, this once; with the line for auth.keys, or, with --url, in a running gateway's store.

    Exit code: 0 it is made, 1 the gateway refuses or can't be asked, 2 the arguments are wrong.
    """
    if target is not None:
        body = {"name": name, "role": role, "tenant": tenant, "expires": expires}
        click.echo(_ask("POST", target, "", body)["key"])
        return
    key = mint()
    fields = {"name": name, "sha256": digest_of(key), "role": role, "tenant": tenant, "expires": expires}
    # A JSON text is YAML; names such as "1.5" or "no" would else be read as something else.
    line = ", ".join(f"{field}: {_yaml(value)}" for field, value in fields.items() if value)
    click.echo(f"The key, shown this once:\n\n    {key}\n")
    click.echo(f"The line for auth.keys, with its SHA-256:\n\n    - {{{line}}}\n\n{_FILE_KEY}")


def _yaml(value: str) -> str:
    return value if re.fullmatch(r"[0-9a-f]{64}|user|admin|metrics|\d{4}-.*Z", value) else json.dumps(value)


@keys.command("list")
@url_option(required=True)
def list_keys(target: Target) -> None:
    """List a running gateway's keys: never a key itself.

    Exit code: 0 listed, 1 the gateway refuses or can't be asked, 2 the arguments are wrong.
    """
    columns = ("name", "role", "tenant", "source", "created", "expires", "last_used")
    rows: list[tuple[str, ...]] = [columns]
    after = ""
    while True:
        page = _ask("GET", target, f"?after={quote(after, safe='')}")
        rows += [tuple(str(key.get(column) or "-") for column in columns) for key in page["keys"]]
        after = page.get("next", "")
        if not after:
            break
    print_table(rows)


@keys.command()
@click.argument("name", callback=_name)
@click.option(
    "--overlap",
    type=click.FloatRange(min=0),
    default=None,
    metavar="SECONDS",
    help="How long the old one still holds.  [default: auth.rotation_overlap]",
)
@url_option(required=True)
def rotate(name: str, overlap: float | None, target: Target) -> None:
    """Give a key of a running gateway's store a new secret, and print the secret.

    Exit code: 0 it has one, 1 the gateway refuses or can't be asked, 2 the arguments are wrong.
    """
    body = {} if overlap is None else {"overlap_seconds": overlap}
    click.echo(_ask("POST", target, f"/{quote(name, safe='')}/rotate", body)["key"])


@keys.command()
@click.argument("name", callback=_name)
@url_option(required=True)
def revoke(name: str, target: Target) -> None:
    """Revoke a key of a running gateway's store, and close its sockets.

    Exit code: 0 it is revoked, 1 the gateway refuses or can't be asked, 2 the arguments are wrong.
    """
    _ask("DELETE", target, f"/{quote(name, safe='')}")
    click.echo(f"{name} is revoked")


def _ask(method: str, target: Target, path: str, body: Any = None) -> Any:
    return ask(method, target, f"/gateway/keys{path}", body)
