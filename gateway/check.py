"""The command ``check``: what is wrong with a configuration, and how each backend is."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import click

from gateway.comfy.client import BackendError, ComfyClient
from gateway.settings import BackendSettings, Settings, SettingsError, load

GIB = 1024**3


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
def check(config: Path | None, backends: tuple[str, ...]) -> None:
    """Say what is wrong with the configuration, and how each backend is.

    Exit code: 0 all is well, 1 a backend can't be reached, 2 the configuration is wrong.
    """
    try:
        settings = load(config, flags={"backends": [{"url": url} for url in backends]} if backends else None)
    except SettingsError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        sys.exit(2)
    if settings.open_to_strangers:
        click.echo("auth: listens beyond loopback without a key; add auth.keys, or set auth.disabled", err=True)
        sys.exit(2)
    rows = asyncio.run(_rows(settings))
    _print(rows)
    sys.exit(0 if rows and all(row.reachable == "yes" for row in rows) else 1)


async def _rows(settings: Settings) -> list[Row]:
    async with aiohttp.ClientSession() as session:
        return list(await asyncio.gather(*(_row(session, settings, backend) for backend in settings.backends)))


async def _row(session: aiohttp.ClientSession, settings: Settings, backend: BackendSettings) -> Row:
    client = ComfyClient(backend.url, session, settings.dispatch.connect_timeout, settings.probe.timeout)
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
