"""The command ``simulate``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gateway.simulator import faults, server
from gateway.simulator.options import SimulatorOptions, model_names


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8188, show_default=True, help="Port; 0 picks one.")
@click.option("--steps-per-second", type=click.FloatRange(min=0, min_open=True), default=20.0, show_default=True)
@click.option("--models", default="sd_xl_base_1.0", show_default=True, help="Checkpoints, separated by commas.")
@click.option("--loras", default="", help="LoRAs, separated by commas.")
@click.option("--without", multiple=True, metavar="CLASS", help="A node class that it does not have.")
@click.option("--load-seconds", type=click.FloatRange(min=0), default=0.0, help="Time to load a checkpoint.")
@click.option("--block-loop", is_flag=True, help="Loading blocks the event loop, as it does for real.")
@click.option("--hold-loop", type=click.FloatRange(0, 0.99), default=0.0, help="Share of time a job holds the loop.")
@click.option("--seed", type=int, default=None, help="Makes what is random repeatable.")
@click.option("--cache", is_flag=True, help="Reuse the results of the last run, as ComfyUI does.")
@click.option(
    "--preview-method", type=click.Choice(["auto", "none"]), default="auto", help="As ComfyUI's, which says none."
)
@click.option("--fail", "failures", multiple=True, metavar="SPEC", help=f"A fault: {', '.join(sorted(faults.KNOWN))}.")
@click.option("--vram-gb", type=click.FloatRange(min=1), default=24.0, show_default=True)
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
    loras: str,
    without: tuple[str, ...],
    load_seconds: float,
    block_loop: bool,
    hold_loop: float,
    seed: int | None,
    cache: bool,
    preview_method: str,
    failures: tuple[str, ...],
    vram_gb: float,
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
        loras=model_names(loras),
        without=without,
        load_seconds=load_seconds,
        block_loop=block_loop,
        hold_loop=hold_loop,
        seed=seed,
        cache=cache,
        previews=preview_method != "none",
        vram_gb=vram_gb,
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
