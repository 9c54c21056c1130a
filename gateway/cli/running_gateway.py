"""Calls of a running gateway by a command: its address, its certificate, the key in the environment."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import click

from gateway.cli.terminal import exit_with
from gateway.settings.addresses import host_and_port

TIMEOUT = 30.0
# In the environment, not a flag: flags show in the list of processes.
KEY_VARIABLE = "COMFYUI_KEY"
_ADDRESS = re.compile(r"https?://[^/\s?#@]+(?:/[A-Za-z0-9._~-]+)*/?")
_HOST_AND_PORT = re.compile(r"[^/\s?#@:]+:\d{1,5}|\[[0-9a-fA-F:.]+\]:\d{1,5}")


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


def url_option(*, required: bool, whose: str = "an admin's key") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the options that name a running gateway; the command gets them as its `target`."""
    help_ = f"A running gateway, HOST:PORT for http; {KEY_VARIABLE} holds {whose} for it."
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
    try:
        fits = _ADDRESS.fullmatch(url) is not None and bool(host_and_port(url))
    except ValueError:
        fits = False
    if not fits:
        raise click.UsageError(
            "--url must be http://HOST:PORT, https://HOST:PORT, with a path such as /comfy behind a proxy, or HOST:PORT"
        )
    return url


def ask(
    method: str,
    target: Target,
    path: str,
    body: Any = None,
    *,
    whose: str = "an admin's key",
    key: str | None = None,
) -> Any:
    """Call a route of the gateway. If it refuses, end the command with its sentence.

    Args:
        whose: the key that the route needs, in words.
        key: the key; None to take it from the environment.
    """
    key = (os.environ.get(KEY_VARIABLE, "") if key is None else key).strip()
    if not key.isascii() or not key.isprintable():
        raise click.UsageError("the key holds characters that can't be sent in a header")
    status, answer = asyncio.run(_send(method, target, path, key, body))
    if status >= 300:
        error = answer.get("error") or {}
        if status == 401 and not key:
            exit_with(f"{error.get('message', 'a key is needed')}: set {KEY_VARIABLE} to {whose}")
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
