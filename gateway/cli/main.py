"""The commands: serve, keys, webhooks, simulate, demo, check, journal, sweep."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from pathlib import Path
from typing import Any

import click

from gateway.app import Gateway, OpenToStrangers
from gateway.artifacts.object_store import StorageError
from gateway.cli.check import check
from gateway.cli.demo import demo
from gateway.cli.journal import journal
from gateway.cli.keys import keys
from gateway.cli.standard_streams import open_missing, say
from gateway.cli.sweep import sweep
from gateway.cli.terminal import EXIT_UNUSABLE, EXIT_USAGE, LOG_FORMATS, OPEN, complain, exit_with, load_or_exit
from gateway.cli.webhooks import webhooks
from gateway.preflight import warnings
from gateway.settings import ADMIN_KEYS, Settings, admin_keys_of, backends_of, keys_of
from gateway.simulator.command import simulate
from gateway.store.protocol import StoreError
from gateway.telemetry import logs
from gateway.telemetry.garbage_collection import set_thresholds
from gateway.web.server.bind_addresses import CannotListen

_log = logs.get("gateway")


@click.group()
@click.version_option(package_name="comfyui-gateway")
def main() -> None:
    """One ComfyUI endpoint over a fleet of ComfyUI backends."""
    open_missing()


@main.command()
@click.option("--config", type=click.Path(path_type=Path), default=None, help="YAML file with the settings.")
@click.option("--backend", "backends", multiple=True, metavar="URL", help="A ComfyUI; can be given many times.")
@click.option("--host", default=None, help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), default=None, help="Port.  [default: 8288]")
@click.option("--api-key", "api_keys", multiple=True, metavar="KEY", help="A key that may call; can be repeated.")
@click.option("--admin-key", "admin_keys", multiple=True, metavar="KEY", help="An admin's key, beside all others.")
@click.option("--no-auth", is_flag=True, help="No keys: everybody who reaches it may call.")
@click.option("--data-dir", type=click.Path(path_type=Path), default=None, help="The journal's place.  [default: data]")
@click.option("--log-format", type=LOG_FORMATS, default=None, help="Form of log lines.  [default: json]")
def serve(
    config: Path | None,
    backends: tuple[str, ...],
    host: str | None,
    port: int | None,
    api_keys: tuple[str, ...],
    admin_keys: tuple[str, ...],
    no_auth: bool,
    data_dir: Path | None,
    log_format: str | None,
) -> None:
    """Serve: one ComfyUI endpoint in front of all backends."""
    flags = _flags(backends, host, port, api_keys, no_auth, data_dir)
    if admin_keys:
        flags[ADMIN_KEYS] = admin_keys_of(admin_keys)
    if log_format is not None:
        flags["log"] = {"format": log_format}
    settings = load_or_exit(config, flags)
    try:
        logs.configure(settings.log.level, settings.log.format, settings.log.file)
    except OSError as error:
        exit_with(f"log.file: {settings.log.file} can't be opened: {error.strerror or error}")
    for message in warnings(settings):
        _log.warning("configuration_dangerous", message=message)
    code = _run(settings)
    logs.finish()
    sys.exit(code)


main.add_command(keys)
main.add_command(webhooks)
main.add_command(simulate)
main.add_command(demo)
main.add_command(check)
main.add_command(journal)
main.add_command(sweep)


def _flags(
    backends: tuple[str, ...],
    host: str | None,
    port: int | None,
    api_keys: tuple[str, ...],
    no_auth: bool,
    data_dir: Path | None,
) -> dict[str, Any]:
    """Return the settings that flags give, in the file's form."""
    server = {key: value for key, value in (("host", host), ("port", port)) if value is not None}
    auth: dict[str, Any] = {}
    if api_keys:
        auth["keys"] = keys_of(api_keys)
    if no_auth:
        auth |= {"disabled": True}
    flags: dict[str, Any] = {}
    if server:
        flags["server"] = server
    if auth:
        flags["auth"] = auth
    if backends:
        flags["backends"] = backends_of(backends)
    if data_dir is not None:
        flags["data_dir"] = str(data_dir)
    return flags


def _run(settings: Settings) -> int:
    gc.freeze()
    set_thresholds()
    if sys.platform != "win32":
        import uvloop

        return int(uvloop.run(_serve(settings)))
    return asyncio.run(_serve(settings))


def _stop_or_hurry(stop: asyncio.Event, gateway: Gateway) -> None:
    """Stop the gateway. At the second signal stop waiting for requests."""
    if stop.is_set():
        gateway.hurry()
    stop.set()


async def _serve(settings: Settings) -> int:
    stop, gateway = asyncio.Event(), Gateway(settings)
    for signal_ in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_, _stop_or_hurry, stop, gateway)
    if sys.platform != "win32":
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, gateway.reload)
    try:
        await gateway.start()
    except (StoreError, StorageError) as error:
        complain(str(error))
        return EXIT_UNUSABLE
    except OpenToStrangers:
        complain(OPEN.format(host=settings.server.host))
        return EXIT_USAGE
    except CannotListen as error:
        complain(str(error))
        return EXIT_UNUSABLE
    except OSError as error:
        complain(f"can't start: {error.strerror or error}")
        return EXIT_UNUSABLE
    # Log collectors read lines of JSON; a person reads the line below.
    _log.info("gateway_ready", url=gateway.url, backends={each.name: each.url for each in settings.backends})
    names = ", ".join(f"{backend.name} {backend.url}" for backend in settings.backends)
    count = len(settings.backends)
    noun = "backend" if count == 1 else "backends"
    # If the log is on standard output, leave that to lines of the log alone, because collectors read it.
    stream = sys.stderr if settings.log.file == "stdout" else sys.stdout
    if unwritten := say(f"comfyui-gateway ready on {gateway.url} with {count} {noun}: {names}", stream):
        hint = f"{'standard error' if stream is sys.stderr else 'standard output'} takes nothing; the gateway serves"
        _log.warning("ready_line_unwritten", error=unwritten, hint=hint)
    await stop.wait()
    _log.info("gateway_stopping", drain_timeout=settings.server.drain_timeout)
    await gateway.close()
    _log.info("gateway_stopped")
    return 0
