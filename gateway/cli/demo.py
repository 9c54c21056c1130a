"""The command ``demo``: a simulated fleet and a gateway, a dozen prompts from two clients, live in the terminal."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import click

from gateway.app import Gateway
from gateway.cli.terminal import LOG_FORMATS
from gateway.jobs.state.ledger import Ledger
from gateway.settings import load
from gateway.simulator.options import SimulatorOptions
from gateway.simulator.server import Simulator, start
from gateway.telemetry import logs

PROMPTS_EACH = 6
CLIENTS = ("anna", "ben")
BAR = 24
REFRESH = 0.1


@dataclass(slots=True)
class Bar:
    """A job's line on the screen, with its progress."""

    client: str
    title: str
    prompt_id: str = ""
    backend: str = ""
    value: int = 0
    maximum: int = 1
    state: str = "waiting"
    image: Path | None = None

    def line(self) -> str:
        """Return the text of the line."""
        filled = round(BAR * self.value / max(self.maximum, 1))
        bar = "█" * filled + "·" * (BAR - filled)
        return f"  {self.client:<5} {self.title:<14} {bar} {self.state:<9} {self.backend}".rstrip()


@click.command()
@click.option("--backends", type=click.IntRange(1, 16), default=3, show_default=True, help="Simulated GPUs.")
@click.option("--once", is_flag=True, help="End when the prompts are done.")
@click.option("--port", type=click.IntRange(0, 65535), default=8288, show_default=True)
@click.option("--images", type=click.Path(path_type=Path), default=Path("demo-images"), show_default=True)
@click.option("--log-format", type=LOG_FORMATS, default=None, help="Show log lines of this form instead of bars.")
def demo(backends: int, once: bool, port: int, images: Path, log_format: str | None) -> None:
    """Show the gateway at work: with a simulated fleet behind it, and two clients that use it."""
    logs.configure("error" if log_format is None else "info", log_format or "json")
    images = images.resolve()
    images.mkdir(parents=True, exist_ok=True)
    code = asyncio.run(_demo(backends, once, port, images, has_bars=log_format is None))
    logs.finish()
    sys.exit(code)


async def _demo(count: int, once: bool, port: int, images: Path, *, has_bars: bool) -> int:
    stop = asyncio.Event()
    for signal_ in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_, stop.set)
    simulators = [await start(SimulatorOptions(port=0, load_seconds=0.4, steps_per_second=15)) for _ in range(count)]
    with tempfile.TemporaryDirectory(prefix="comfyui-gateway-demo-") as data_dir:
        gateway = Gateway(_settings(simulators, port, data_dir))
        try:
            await gateway.start()
        except OSError as error:
            click.echo(f"can't listen on port {port}: {error.strerror or error}; choose another with --port", err=True)
            return 1
        finally_close = [gateway.close, *(simulator.close for simulator in simulators)]
        try:
            click.echo(f"{count} simulated ComfyUI behind one endpoint: {gateway.url}\n")
            await _show(gateway, images, stop, has_bars=has_bars)
            if not once and not stop.is_set():
                click.echo(_TRY.format(url=gateway.url))
                await stop.wait()
        finally:
            for close in finally_close:
                await close()
    return 0


_TRY = """
It stays up. Try it:
  curl {url}/queue
  curl {url}/history?max_items=1
  curl {url}/system_stats
  curl {url}/gateway/backends
  curl {url}/metrics
Ctrl-C ends it."""


def _settings(simulators: list[Simulator], port: int, data_dir: str) -> Any:
    flags = {
        "server": {"port": port},
        "data_dir": data_dir,
        "backends": [{"url": simulator.url, "name": f"gpu{n}"} for n, simulator in enumerate(simulators)],
        "probe": {"interval": 0.5},
        "auth": {"disabled": True},
        # Receivers on this machine may be tried (examples/webhook_receiver.py).
        "webhooks": {"allow_http": True, "allow_networks": ["127.0.0.0/8"]},
    }
    return load(None, environment={}, flags=flags)


async def _show(gateway: Gateway, images: Path, stop: asyncio.Event, *, has_bars: bool) -> None:
    bars = [Bar(client, f"picture {n + 1}") for client in CLIENTS for n in range(PROMPTS_EACH)]
    async with aiohttp.ClientSession(gateway.url) as http:
        await _backends_up(http)
        own = {client: [bar for bar in bars if bar.client == client] for client in CLIENTS}
        clients = [
            asyncio.create_task(_client(http, gateway.parts.engine.ledger, name, own[name], images)) for name in CLIENTS
        ]
        screen = asyncio.create_task(_draw(gateway, bars if has_bars else []))
        interrupted: asyncio.Task[bool] = asyncio.create_task(_wait(stop))
        work = asyncio.create_task(_all(clients))
        await asyncio.wait([work, interrupted], return_when=asyncio.FIRST_COMPLETED)
        tasks: list[asyncio.Task[Any]] = [screen, interrupted, work, *clients]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    done = sum(bar.image is not None for bar in bars)
    if has_bars:
        _paint(gateway, bars, first=not sys.stdout.isatty())
    click.echo(f"\n{done} of {len(bars)} images saved in {images}")


async def _wait(stop: asyncio.Event) -> bool:
    return await stop.wait()


async def _all(tasks: list[asyncio.Task[None]]) -> bool:
    await asyncio.gather(*tasks)
    return True


async def _backends_up(http: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(20):
        while True:
            async with http.get("/readyz") as answer:
                ready = await answer.json()
            if ready["backends_up"] == ready["backends"]:
                return
            await asyncio.sleep(REFRESH)


def _prompt(seed: int) -> dict[str, Any]:
    sampler = {"steps": 10 + seed % 7, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    links = {"model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0]}
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd_xl_base_1.0.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a lighthouse in the evening"}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 256, "height": 256, "batch_size": 1}},
        "4": {"class_type": "KSampler", "inputs": {"seed": seed, **sampler, **links}},
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "demo"}},
    }


async def _client(http: aiohttp.ClientSession, ledger: Ledger, name: str, bars: list[Bar], images: Path) -> None:
    """Run one client: send its prompts, follow them on its WebSocket, and fetch its images."""
    by_id: dict[str, Bar] = {}
    seeds = itertools.count(int(time.time()) % 100_000 * 1000 + PROMPTS_EACH * CLIENTS.index(name))
    async with http.ws_connect(f"/ws?clientId={name}&events=interleave", max_msg_size=0) as socket:
        for bar in bars:
            body = {"prompt": _prompt(next(seeds) * 7919), "client_id": name}
            async with http.post("/prompt", json=body) as answer:
                bar.prompt_id = (await answer.json())["prompt_id"]
            by_id[bar.prompt_id] = bar
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                event = json.loads(message.data)
                await _heard(http, by_id, event, images)
                _note_backend(ledger, by_id.get(event["data"].get("prompt_id")))
            if all(bar.state in ("done", "failed") for bar in bars):
                return


def _note_backend(ledger: Ledger, bar: Bar | None) -> None:
    job = ledger.find_any(bar.prompt_id) if bar is not None else None
    if bar is not None and job is not None and job.backend is not None:
        bar.backend = job.backend


async def _heard(http: aiohttp.ClientSession, by_id: dict[str, Bar], event: dict[str, Any], images: Path) -> None:
    data = event["data"]
    bar = by_id.get(data.get("prompt_id"))
    if bar is None:
        return
    if event["type"] == "execution_start":
        bar.state = "running"
    elif event["type"] == "progress":
        bar.value, bar.maximum = data["value"], data["max"]
    elif event["type"] == "executed":
        for image in data["output"].get("images", ()):
            async with http.get("/view", params=image) as answer:
                bar.image = images / f"{bar.client}-{image['filename']}"
                bar.image.write_bytes(await answer.read())
    elif event["type"] == "executing" and data["node"] is None:
        bar.state = "done"
    elif event["type"] in ("execution_error", "execution_interrupted"):
        bar.state = "failed"


async def _draw(gateway: Gateway, bars: list[Bar]) -> None:
    if not bars or not sys.stdout.isatty():
        return
    first = True
    while True:
        _paint(gateway, bars, first=first)
        first = False
        await asyncio.sleep(REFRESH)


def _paint(gateway: Gateway, bars: list[Bar], *, first: bool) -> None:
    ledger = gateway.parts.engine.ledger
    for bar in bars:
        _note_backend(ledger, bar)
    loads = "  ".join(
        f"{name}: {queued} pending, {running} running"
        for name in gateway.parts.fleet.backends
        for queued, running in [ledger.load(name)]
    )
    lines = [*(bar.line() for bar in bars), "", f"  {loads}"]
    if not first and sys.stdout.isatty():
        sys.stdout.write(f"\x1b[{len(lines)}A")
    sys.stdout.write("".join(f"\x1b[2K{line}\n" if sys.stdout.isatty() else f"{line}\n" for line in lines))
    sys.stdout.flush()
