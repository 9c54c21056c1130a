"""The command ``simulate``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gateway.simulator import faults, server
from gateway.simulator.cache_options import CacheOptionError, read_cache_options
from gateway.simulator.models import KEYS, ModelError, read_model
from gateway.simulator.options import SimulatorOptions, model_names


class _ComfyCommand(click.Command):
    """Command with ComfyUI's cache options, whose numbers of values click does not know."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Join the two values of ``--cache-ram``."""
        joined: list[str] = []
        for argument in args:
            if len(joined) > 1 and joined[-2] == "--cache-ram" and _is_number(joined[-1]) and _is_number(argument):
                joined[-1] += f" {argument}"
            else:
                joined.append(argument)
        return super().parse_args(ctx, joined)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()


def _cache_arguments(
    *, cache_ram: str | None, cache_lru: int | None, cache_classic: bool, cache_none: bool, high_ram: bool
) -> tuple[str, ...]:
    """Return ComfyUI's cache options as its command line has them.

    Raises:
        click.UsageError: ComfyUI does not start with them.
    """
    flags = {"--cache-classic": cache_classic, "--cache-none": cache_none, "--high-ram": high_ram}
    arguments = [name for name, is_set in flags.items() if is_set]
    if cache_lru is not None:
        arguments += ["--cache-lru", str(cache_lru)]
    if cache_ram is not None:
        arguments += ["--cache-ram", *cache_ram.split()]
    try:
        read_cache_options(arguments, 1.0)
    except CacheOptionError as error:
        raise click.UsageError(str(error)) from error
    return tuple(arguments)


def _described(descriptions: tuple[str, ...]) -> dict[str, dict[str, float]]:
    try:
        read = [read_model(text) for text in descriptions]
    except ModelError as error:
        raise click.BadParameter(str(error), param_hint="--model") from error
    return {model_names(name)[0]: values for name, values in read}


@click.command(cls=_ComfyCommand)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8188, show_default=True, help="Port; 0 picks one.")
@click.option("--steps-per-second", type=click.FloatRange(min=0, min_open=True), default=20.0, show_default=True)
@click.option("--models", default="sd_xl_base_1.0", show_default=True, help="Checkpoints, separated by commas.")
@click.option("--unets", default="", help="Diffusion models for UNETLoader, separated by commas.")
@click.option("--clips", default="", help="Text encoders for CLIPLoader, separated by commas.")
@click.option("--loras", default="", help="LoRAs, separated by commas.")
@click.option("--model", "descriptions", multiple=True, metavar="NAME:KEY=NUMBER,…", help=f"Keys: {', '.join(KEYS)}.")
@click.option("--without", multiple=True, metavar="CLASS", help="A node class that it does not have.")
@click.option("--load-seconds", type=click.FloatRange(min=0), default=0.0, help="Time to load a model.")
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True)
@click.option(
    "--time-scale", type=click.FloatRange(min=0), default=1.0, show_default=True, help="Factor of all its times."
)
@click.option("--block-loop", is_flag=True, help="Loading blocks the event loop, as it does for real.")
@click.option("--hold-loop", type=click.FloatRange(0, 0.99), default=0.0, help="Share of time a job holds the loop.")
@click.option("--seed", type=int, default=None, help="Makes what is random repeatable.")
@click.option("--cache-ram", is_flag=False, flag_value="", default=None, metavar="GB GB", help="As ComfyUI's.")
@click.option("--cache-lru", type=int, default=None, metavar="N", help="As ComfyUI's.")
@click.option("--cache-classic", is_flag=True, help="As ComfyUI's.")
@click.option("--cache-none", is_flag=True, help="As ComfyUI's.")
@click.option("--high-ram", is_flag=True, help="As ComfyUI's.")
@click.option(
    "--preview-method", type=click.Choice(["auto", "none"]), default="auto", help="As ComfyUI's, which says none."
)
@click.option("--fail", "failures", multiple=True, metavar="SPEC", help=f"A fault: {', '.join(sorted(faults.KNOWN))}.")
@click.option("--vram-gb", type=click.FloatRange(min=1), default=24.0, show_default=True)
@click.option("--ram-gb", type=click.FloatRange(min=0, min_open=True), default=64.0, show_default=True)
@click.option("--cpu", is_flag=True, help="Have no GPU: report the host's memory as VRAM, as ComfyUI does.")
@click.option(
    "--max-upload-size", type=click.FloatRange(min=0, min_open=True), default=100.0, show_default=True, help="MB."
)
@click.option("--base-dir", type=click.Path(path_type=Path), default=None, help="Keep files here, over a restart.")
@click.option("--front-end-root", type=click.Path(path_type=Path, exists=True), default=None)
@click.option("--record", is_flag=True, help="Keep what it is sent, for GET /simulator/recorded.")
@click.option("--custom-nodes", is_flag=True, help="Have custom nodes that keep state in the process.")
@click.option("--authorization", default="", metavar="VALUE", help="Refuse requests without this Authorization.")
@click.option("--tls", nargs=2, type=click.Path(path_type=Path, exists=True), default=None, metavar="CERT KEY")
@click.option("--client-ca", type=click.Path(path_type=Path, exists=True), default=None, help="Ask for certificates.")
def simulate(
    host: str,
    port: int,
    steps_per_second: float,
    models: str,
    unets: str,
    clips: str,
    loras: str,
    descriptions: tuple[str, ...],
    without: tuple[str, ...],
    load_seconds: float,
    speed: float,
    time_scale: float,
    block_loop: bool,
    hold_loop: float,
    seed: int | None,
    cache_ram: str | None,
    cache_lru: int | None,
    cache_classic: bool,
    cache_none: bool,
    high_ram: bool,
    preview_method: str,
    failures: tuple[str, ...],
    vram_gb: float,
    ram_gb: float,
    cpu: bool,
    max_upload_size: float,
    base_dir: Path | None,
    front_end_root: Path | None,
    record: bool,
    custom_nodes: bool,
    authorization: str,
    tls: tuple[Path, Path] | None,
    client_ca: Path | None,
) -> None:
    """Run one simulated ComfyUI, without a GPU."""
    try:
        for specification in failures:
            faults.parse(specification)
    except faults.UnknownFault as error:
        raise click.BadParameter(str(error), param_hint="--fail") from error
    options = SimulatorOptions(
        port=port,
        host=host,
        steps_per_second=steps_per_second,
        models=model_names(models),
        unets=model_names(unets),
        clips=model_names(clips),
        loras=model_names(loras),
        described=_described(descriptions),
        without=without,
        load_seconds=load_seconds,
        speed=speed,
        time_scale=time_scale,
        block_loop=block_loop,
        hold_loop=hold_loop,
        seed=seed,
        cache_arguments=_cache_arguments(
            cache_ram=cache_ram,
            cache_lru=cache_lru,
            cache_classic=cache_classic,
            cache_none=cache_none,
            high_ram=high_ram,
        ),
        previews=preview_method != "none",
        vram_gb=vram_gb,
        ram_gb=ram_gb,
        cpu=cpu,
        max_upload_mb=max_upload_size,
        base_dir=base_dir,
        front_end_root=front_end_root,
        faults=failures,
        record=record,
        custom_nodes=custom_nodes,
        authorization=authorization,
        tls=tls,
        client_ca=client_ca,
    )
    sys.exit(server.run(options))
