"""The command ``check``: what is wrong with a configuration, how each backend is, and whether one still fits."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import aiohttp
import click
from yarl import URL

from gateway.comfy.client import BackendError
from gateway.conformance import suite
from gateway.conformance.asking import CannotAsk, Examination
from gateway.fleet.backend import client_of
from gateway.settings import BackendSettings, Settings, SettingsError, load
from gateway.store.salvage import had_keys
from gateway.tenants.keys import LOCAL_TENANT

GIB = 1024**3
EXIT_USAGE = 2
_ADDRESS = re.compile(r"https?://[^/\s?#@]+(/[^?#\s]*)?")
# Not the gateway's own variable: what is asked may be a ComfyUI, and that is told no keys of the gateway.
_KEY = "COMFYUI_KEY"


@dataclass(frozen=True, slots=True)
class Row:
    """One backend's line of the table."""

    name: str
    url: str
    reachable: str
    version: str = "-"
    devices: str = "-"
    vram: str = "-"
    queue: str = "-"


@click.command()
@click.option("--config", type=click.Path(path_type=Path), default=None, help="YAML file with the settings.")
@click.option("--backend", "backends", multiple=True, metavar="URL", help="A ComfyUI to look at as well.")
@click.option("--conformance", "address", metavar="URL", default=None, help="A ComfyUI or gateway to compare, instead.")
@click.option("--api-key", metavar="KEY", default=None, help="With --conformance: the key that it needs.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="With --conformance: seconds for one request.",
)
def check(
    config: Path | None, backends: tuple[str, ...], address: str | None, api_key: str | None, timeout: float
) -> None:
    """Say what is wrong with the configuration, and how each backend is.

    Or, with --conformance, what a ComfyUI answers otherwise than the one that this gateway was made for.

    Exit code: 0 all is well, 1 a backend can't be reached, or answers otherwise, 2 the configuration is wrong, or the
    address can't be asked.
    """
    if address is None:
        if api_key is not None:
            raise click.UsageError("--api-key goes with --conformance")
        _check_configuration(config, backends)
    if config or backends:
        raise click.UsageError("--conformance asks one address; it goes without --config and --backend")
    assert address is not None
    sys.exit(asyncio.run(_check_conformance(_address(address), _key(api_key), timeout)))


def _check_configuration(config: Path | None, backends: tuple[str, ...]) -> NoReturn:
    try:
        settings = load(config, flags={"backends": [{"url": url} for url in backends]} if backends else None)
    except SettingsError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        sys.exit(EXIT_USAGE)
    if settings.open_to_strangers and not had_keys(settings.data_dir):
        click.echo("auth: listens beyond loopback without a key; add auth.keys, or set auth.disabled", err=True)
        sys.exit(EXIT_USAGE)
    for tenant in unknown_tenants(settings):
        hint = f"tenants.named.{tenant}: no key of the configuration stands for this tenant; one of the store may"
        click.echo(hint, err=True)
    rows = asyncio.run(_rows(settings))
    _print(rows)
    sys.exit(0 if rows and all(row.reachable == "yes" for row in rows) else 1)


def unknown_tenants(settings: Settings) -> list[str]:
    """The tenants that are named and that no key of the configuration stands for: made over the API, or misspelt."""
    known = {key.tenant or key.name for key in settings.auth.keys} | {LOCAL_TENANT}
    if settings.tenants.anonymous.networks:
        known.add(settings.tenants.anonymous.tenant)
    return sorted(settings.tenants.named.keys() - known)


async def _check_conformance(url: str, key: str | None, timeout: float) -> int:
    """Print a line for each question, and a last one. Returns the exit code."""
    expected = suite.load()
    examination, verdicts = Examination(expected, url, key, timeout), []
    try:
        async for verdict in examination.verdicts():
            click.echo(str(verdict))
            verdicts.append(verdict)
    except CannotAsk as error:
        click.echo(f"comfyui-gateway: {suite.plain(str(error))}", err=True)
        return EXIT_USAGE
    click.echo(suite.summary(expected, examination.version, verdicts))
    return 0 if suite.fits(verdicts) else 1


def _address(given: str) -> str:
    """The address without a slash at its end; HOST:PORT alone means http. It is not shown: it may hold a key."""
    address = given.strip()
    address = address if "://" in address else f"http://{address}"
    try:
        fits = _ADDRESS.fullmatch(address) is not None and bool(URL(address).host and URL(address).port)
    except ValueError:
        fits = False
    if not fits:
        raise click.UsageError(
            "--conformance must be http://HOST:PORT or https://HOST:PORT, without query or credentials"
        )
    return address.rstrip("/")


def _key(given: str | None) -> str | None:
    """The key to send: the flag's, else the variable's. It goes into a header as it is."""
    key = (given if given is not None else os.environ.get(_KEY, "")).strip()
    if not key.isprintable():
        raise click.UsageError("the key holds characters that can't be sent in a header")
    return key or None


async def _rows(settings: Settings) -> list[Row]:
    async with aiohttp.ClientSession() as session:
        return list(await asyncio.gather(*(_row(session, settings, backend) for backend in settings.backends)))


async def _row(session: aiohttp.ClientSession, settings: Settings, backend: BackendSettings) -> Row:
    client = client_of(backend, settings, session)
    try:
        queue, stats = await client.queue(), await client.system_stats()
    except BackendError as error:
        return Row(backend.name, backend.url, f"no: {error}")
    devices = stats.get("devices") or []
    free = sum(device.get("vram_free") or 0 for device in devices) / GIB
    total = sum(device.get("vram_total") or 0 for device in devices) / GIB
    return Row(
        backend.name,
        backend.url,
        "yes",
        str(stats["system"].get("comfyui_version", "?")),
        ", ".join(str(device.get("name")) for device in devices),
        f"{free:.1f} of {total:.1f} GiB free",
        f"{len(queue.running)} running, {len(queue.pending)} pending",
    )


def _print(rows: list[Row]) -> None:
    if not rows:
        click.echo("backends: none is configured", err=True)
        return
    titles = ("NAME", "URL", "REACHABLE", "VERSION", "DEVICES", "VRAM", "QUEUE")
    table = [titles, *((r.name, r.url, r.reachable, r.version, r.devices, r.vram, r.queue) for r in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(titles))]
    for line in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
