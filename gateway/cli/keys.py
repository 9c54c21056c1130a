"""The commands ``keys …``: make a key for the configuration, or manage a running gateway's keys by its admin API."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import click

from gateway.cli.terminal import exit_with, print_table
from gateway.settings.base import checked_name
from gateway.tenants.keys import Role, digest_of, mint
from gateway.tenants.lifetimes import NoTime, time_of

TIMEOUT = 30.0
# In the environment, not a flag: flags show in the list of processes.
_ADMIN_KEY = "COMFYUI_KEY"
_ADDRESS = re.compile(r"https?://[^/\s?#@]+(?:/[A-Za-z0-9._~-]+)*/?")
_HOST_AND_PORT = re.compile(r"[^/\s?#@:]+:\d{1,5}|\[[0-9a-fA-F:.]+\]:\d{1,5}")
# Printed with a key for the configuration, because its user may expect to revoke it later.
_FILE_KEY = """A key in the file holds until it is taken out and the gateway is restarted. One that is made in a
running gateway's store, with --url, can be rotated and revoked while it runs."""


@click.group()
def keys() -> None:
    """Make a key; list, rotate and revoke the keys of a running gateway."""


@dataclass(frozen=True, slots=True)
class Target:
    """A running gateway: its address, and the authority of its certificate."""

    url: str
    ca: Path | None
    insecure: bool

    @property
    def tls(self) -> ssl.SSLContext | bool:
        """Return aiohttp's argument for checking the certificate."""
        return not self.insecure if self.ca is None else ssl.create_default_context(cafile=self.ca)


def _url_option(*, required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    help_ = f"A running gateway, HOST:PORT for http; {_ADMIN_KEY} holds an admin's key for it."
    url = click.option("--url", metavar="URL", required=required, help=help_)
    ca = click.option(
        "--ca",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Who vouches for its certificate (PEM).",
    )
    insecure = click.option("--insecure", is_flag=True, help="Take any certificate: the key goes to whoever answers.")

    def with_target(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def called(*, url: str | None, ca: Path | None, insecure: bool, **rest: Any) -> Any:
            return command(target=None if url is None else Target(_address(url), ca, insecure), **rest)

        return called

    return lambda command: url(ca(insecure(with_target(command))))


def _address(url: str) -> str:
    url = f"http://{url}" if _HOST_AND_PORT.fullmatch(url) else url
    if not _ADDRESS.fullmatch(url):
        raise click.UsageError(
            "--url must be http://HOST:PORT, https://HOST:PORT, with a path such as /comfy behind a proxy, or HOST:PORT"
        )
    return url


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
    return datetime.fromtimestamp(expires, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@keys.command()
@click.argument("name", callback=_name)
@click.option("--role", type=click.Choice([str(role) for role in Role]), default="user", show_default=True)
@click.option("--tenant", default="", callback=_name, help="Whose jobs and files.  [default: the key's name]")
@click.option("--expires", default=None, callback=_expires, metavar="WHEN", help="30d, 12h, or 2026-12-24.")
@_url_option(required=False)
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
@_url_option(required=True)
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
@_url_option(required=True)
def rotate(name: str, overlap: float | None, target: Target) -> None:
    """Give a key of a running gateway's store a new secret, and print the secret.

    Exit code: 0 it has one, 1 the gateway refuses or can't be asked, 2 the arguments are wrong.
    """
    body = {} if overlap is None else {"overlap_seconds": overlap}
    click.echo(_ask("POST", target, f"/{quote(name, safe='')}/rotate", body)["key"])


@keys.command()
@click.argument("name", callback=_name)
@_url_option(required=True)
def revoke(name: str, target: Target) -> None:
    """Revoke a key of a running gateway's store, and close its sockets.

    Exit code: 0 it is revoked, 1 the gateway refuses or can't be asked, 2 the arguments are wrong.
    """
    _ask("DELETE", target, f"/{quote(name, safe='')}")
    click.echo(f"{name} is revoked")


def _ask(method: str, target: Target, path: str, body: Any = None) -> Any:
    """Call the admin API. If it refuses, end the command with its sentence."""
    key = os.environ.get(_ADMIN_KEY, "").strip()
    if not key.isascii() or not key.isprintable():
        raise click.UsageError(f"{_ADMIN_KEY} holds characters that can't be sent in a header")
    status, answer = asyncio.run(_send(method, target, f"/gateway/keys{path}", key, body))
    if status >= 300:
        error = answer.get("error") or {}
        if status == 401 and not key:
            exit_with(f"{error.get('message', 'a key is needed')}: set {_ADMIN_KEY} to an admin's key")
        exit_with(": ".join(filter(None, (error.get("message", f"answer {status}"), error.get("details")))))
    return answer


async def _send(method: str, target: Target, path: str, key: str, body: Any) -> tuple[int, Any]:
    url = f"{target.url.rstrip('/')}{path}"
    headers = {"X-API-Key": key} if key else {}
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as http,
            http.request(method, url, json=body, allow_redirects=False, ssl=target.tls) as answer,
        ):
            return answer.status, await answer.json()
    except (aiohttp.ClientConnectorCertificateError, ssl.SSLError) as error:
        exit_with(f"{url}: its certificate is not vouched for ({error}); give its authority with --ca FILE")
    except (aiohttp.ClientConnectionError, TimeoutError) as error:
        exit_with(f"{url} can't be asked: {error or 'no answer in time'}")
    except (aiohttp.ClientError, ValueError):
        exit_with(f"{url} is not answered by a comfyui-gateway")
