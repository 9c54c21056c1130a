"""The command ``check``: problems of a configuration, the state of each backend, and conformance of a ComfyUI."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
import click

from gateway.catalogue.capabilities import compare
from gateway.catalogue.differences import MAX_NAME, MAX_NAMED, differences
from gateway.catalogue.packs import line_to_paste, packs_of, untrusted
from gateway.cli.check_models import cache_advice, read_learned
from gateway.cli.check_storage import check_storage, storage_problem
from gateway.cli.terminal import EXIT_UNUSABLE, EXIT_USAGE, load_or_exit, print_table
from gateway.comfy import json_codec
from gateway.comfy.client import MAX_OBJECT_INFO, BackendError, BadAnswer, ComfyClient
from gateway.comfy.node_review import review
from gateway.comfy.object_info import read_object_info
from gateway.conformance import suite
from gateway.conformance.asking import CannotAsk, Examination
from gateway.fleet.backend import client_of
from gateway.fleet.diagnosis import IS_GATEWAY, is_gateway, reason_of
from gateway.preflight import Machine, hints, judge_machine, warnings
from gateway.settings import BackendSettings, Settings, backends_of
from gateway.settings.addresses import host_and_port
from gateway.telemetry.tasks import together
from gateway.tenants.keys import Keyring
from gateway.tenants.policy import Policies

GIB = 1024**3
_ADDRESS = re.compile(r"https?://[^/\s?#@]+(/[^?#\s]*)?")
# Not the gateway's own variable, because a ComfyUI at the address must not get a key of the gateway.
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
    # Its command line; empty if it does not tell.
    argv: tuple[object, ...] = ()
    # Its node classes; None if the backend did not send them, or if the check does not need them.
    classes: Mapping[str, Any] | None = None


@click.command()
@click.option("--config", type=click.Path(path_type=Path), default=None, help="YAML file with the settings.")
@click.option("--backend", "backends", multiple=True, metavar="URL", help="A ComfyUI to look at as well.")
@click.option("--conformance", "address", metavar="URL", default=None, help="A ComfyUI or gateway to compare, instead.")
@click.option("--api-key", metavar="KEY", default=None, help="With --conformance: the key that it needs.")
@click.option("--storage", "has_storage", is_flag=True, help="Try the object storage instead of the backends.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="With --conformance: seconds for one request.",
)
def check(
    config: Path | None,
    backends: tuple[str, ...],
    address: str | None,
    api_key: str | None,
    has_storage: bool,
    timeout: float,
) -> None:
    """Report problems of the configuration and of this machine, and the state of each backend.

    Or, with --conformance, compare the answers at an address with those of the ComfyUI that this gateway was made for.
    Or, with --storage, put, get, sign and delete an object in the object storage of the configuration.

    Exit code: 0 all is well, 1 a backend or the storage can't be reached or answers otherwise, or this machine can't
    serve, 2 the configuration is wrong, or the address can't be asked.
    """
    if has_storage:
        if address is not None or api_key is not None or backends:
            raise click.UsageError("--storage goes with --config alone")
        sys.exit(check_storage(load_or_exit(config).storage))
    if address is None:
        if api_key is not None:
            raise click.UsageError("--api-key goes with --conformance")
        _check_configuration(config, backends)
    if config or backends:
        raise click.UsageError("--conformance asks one address; it goes without --config and --backend")
    assert address is not None
    sys.exit(asyncio.run(_check_conformance(_address(address), _key(api_key), timeout)))


def _check_configuration(config: Path | None, backends: tuple[str, ...]) -> NoReturn:
    settings = load_or_exit(config, {"backends": backends_of(backends)} if backends else None)
    # If --backend is given, leave out the checks of this machine, because the user asks about a ComfyUI alone.
    machine = Machine() if backends else judge_machine(settings)
    for warning in hints(settings) + warnings(settings) + machine.warnings:
        click.echo(f"warning: {warning}", err=True)
    if machine.refusal:
        click.echo(f"comfyui-gateway: {machine.refusal}", err=True)
    # The same holds for object storage. Whether it works, --storage tells.
    problem = "" if backends else storage_problem(settings.storage)
    if problem:
        click.echo(f"comfyui-gateway: {problem}", err=True)
    rows = asyncio.run(_rows(settings))
    _print(rows)
    _print_differences(rows)
    if not backends:
        told = {row.name: row.argv for row in rows if row.argv}
        for advice in cache_advice(read_learned(settings.data_dir), told):
            click.echo(f"warning: {advice}", err=True)
    if machine.is_running:
        click.echo(f"A gateway is running on {settings.data_dir.resolve()}; its address was not tried.")
    if Keyring(settings.auth, settings.tenants.anonymous).has_strangers:
        shared = {backend.name for backend in settings.backends if not backend.tenants}
        _print_trust(settings, [row for row in rows if row.name in shared])
    is_unusable = machine.refusal or problem or any(row.reachable != "yes" for row in rows)
    sys.exit(EXIT_UNUSABLE if is_unusable else 0)


async def _check_conformance(url: str, key: str | None, timeout: float) -> int:
    """Print a line for each question, and a last one. Return the exit code."""
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
    """Return the address without a slash at its end; HOST:PORT alone means http.

    If it is refused, the message does not repeat the address, because it may hold a key.
    """
    address = given.strip()
    address = address if "://" in address else f"http://{address}"
    try:
        fits = _ADDRESS.fullmatch(address) is not None and bool(host_and_port(address))
    except ValueError:
        fits = False
    if not fits:
        raise click.UsageError(
            "--conformance must be http://HOST:PORT or https://HOST:PORT, without query or credentials"
        )
    return address.rstrip("/")


def _key(given: str | None) -> str | None:
    """Return the key to send: the flag's, else the variable's. It must fit into a header, where it is sent as it is."""
    key = (given if given is not None else os.environ.get(_KEY, "")).strip()
    if not key.isprintable():
        raise click.UsageError("the key holds characters that can't be sent in a header")
    return key or None


async def _rows(settings: Settings) -> list[Row]:
    # Tenants that share a backend may only use classes that are reviewed, or trusted.
    has_strangers = Keyring(settings.auth, settings.tenants.anonymous).has_strangers
    are_several = len(settings.backends) > 1
    async with aiohttp.ClientSession() as session:
        return await together(
            _row(session, settings, backend, asks_classes=are_several or (has_strangers and not backend.tenants))
            for backend in settings.backends
        )


async def _row(
    session: aiohttp.ClientSession, settings: Settings, backend: BackendSettings, *, asks_classes: bool
) -> Row:
    client, path = client_of(backend, settings, session), "/queue"
    try:
        queue = await client.queue()
        if await is_gateway(backend.url, session, settings.probe.timeout):
            return Row(backend.name, backend.url, f"no: {IS_GATEWAY} (GET {backend.url}/readyz)")
        path = "/system_stats"
        stats = await client.system_stats()
        path = "/object_info"
        classes = await _classes(client, settings.catalogue.timeout) if asks_classes else None
    except BackendError as error:
        reason = await reason_of(client, session, error, settings.probe.timeout)
        return Row(backend.name, backend.url, f"no: {reason} (GET {backend.url}{path})")
    free = sum(device.get("vram_free", 0) for device in stats.devices) / GIB
    total = sum(device.get("vram_total", 0) for device in stats.devices) / GIB
    return Row(
        backend.name,
        backend.url,
        "yes",
        stats.version,
        ", ".join(str(device.get("name")) for device in stats.devices),
        f"{free:.1f} of {total:.1f} GiB free",
        f"{len(queue.running)} running, {len(queue.pending)} pending",
        tuple(argv) if isinstance(argv := stats.system.get("argv"), list) else (),
        classes,
    )


async def _classes(client: ComfyClient, timeout: float) -> Mapping[str, Any]:
    """Return a backend's /object_info.

    Raises:
        BackendError: it can't be read.
    """
    answer = await client.call("GET", "/object_info", timeout=timeout, maximum=MAX_OBJECT_INFO)
    try:
        info = json_codec.loads(answer.body) if answer.status == 200 else None
    except json_codec.MalformedJson:
        info = None
    if not isinstance(info, dict):
        raise BadAnswer("GET /object_info did not answer as ComfyUI does", answer.status)
    return read_object_info(info).classes


def _print_trust(settings: Settings, rows: Sequence[Row]) -> None:
    """Print which packs isolated tenants may not use, and the setting that trusts them."""
    infos = {row.name: row.classes for row in rows if row.classes is not None}
    reviewed = review()
    for row in rows:
        if row.classes is not None and row.version != reviewed.version:
            click.echo(
                f"backend {row.name}: ComfyUI {suite.plain(row.version)}; its stock node classes were reviewed for "
                f"{reviewed.version}, and what has changed since was not",
                err=True,
            )
    policies = Policies(settings.tenants, settings.backends)
    found = untrusted(packs_of(infos, policies.default.trusts, reviewed))
    if not found:
        return
    click.echo(
        "\nIsolated tenants may not use these classes on shared backends, because nobody has reviewed their code:"
    )
    titles = ("PACK", "CLASSES", "UNTRUSTED", "BACKENDS")
    cells = [
        (suite.plain(p.name), str(len(p.classes)), str(len(p.untrusted)), ", ".join(sorted(p.backends))) for p in found
    ]
    print_table([titles, *cells])
    click.echo(
        f"To trust all of them (docs/security.md says what that means):\n  {line_to_paste(found, policies.trust)}"
    )


def _print_differences(rows: Sequence[Row]) -> None:
    """Print for each backend the node classes, models and versions that it lacks and another has."""
    infos = {row.name: row.classes for row in rows if row.classes is not None}
    versions = {row.name: row.version for row in rows if row.name in infos}
    found = {name: each for name, each in differences(compare(infos), versions).items() if each.any}
    if found:
        click.echo("\nThe backends differ. A prompt goes only where all that it needs is:")
    for name, each in found.items():
        if each.other_versions:
            others = ", ".join(map(suite.plain, each.other_versions))
            click.echo(f"  {name}: ComfyUI {suite.plain(each.version)}, others {others}")
        for count, names, what in (
            (len(each.classes), sorted(each.classes), "node classes"),
            (len(each.choices), sorted(each.choices), "models or other choices"),
        ):
            if count:
                more = f" and {count - MAX_NAMED} more" if count > MAX_NAMED else ""
                shown = ", ".join(suite.plain(each_name[:MAX_NAME]) for each_name in names[:MAX_NAMED])
                click.echo(f"  {name}: lacks {what} that others have ({count}): {shown}{more}")


def _print(rows: list[Row]) -> None:
    titles = ("NAME", "URL", "REACHABLE", "VERSION", "DEVICES", "VRAM", "QUEUE")
    print_table([titles, *((r.name, r.url, r.reachable, r.version, r.devices, r.vram, r.queue) for r in rows)])
