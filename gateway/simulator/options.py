"""Options of a simulated ComfyUI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gateway.comfy.graph import MODEL_SUFFIXES


@dataclass(slots=True)
class SimulatorOptions:
    """Options of one simulated ComfyUI. Times are seconds.

    `hold_loop` is the share of time for which a running job holds the event loop, as a node that holds Python's
    interpreter does; with `block_loop` a model load blocks it as well. `faults` are specifications as in `faults`.
    Without a GPU (`cpu`) it reports its host's memory as VRAM. With `record` it keeps the requests that it gets. With
    `custom_nodes` it has nodes that keep state in the process. Like a proxy before a ComfyUI, it can ask for an
    `authorization` (the header's value), speak TLS (`tls`: certificate and key) and ask its callers for a certificate
    that `client_ca` vouches for.

    `cache_arguments` are ComfyUI's cache options as its command line has them, such as ``("--cache-ram", "4", "8")``.
    All simulated times are multiplied by `time_scale`, and work is divided by `speed`, loads of models are not.
    `described` has sizes and times of models by name (`models.KEYS`) that differ from the usual ones.
    """

    port: int = 8188
    host: str = "127.0.0.1"
    steps_per_second: float = 20.0
    models: tuple[str, ...] = ("sd_xl_base_1.0.safetensors",)
    unets: tuple[str, ...] = ()
    clips: tuple[str, ...] = ()
    loras: tuple[str, ...] = ()
    described: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    load_seconds: float = 0.0
    block_loop: bool = False
    hold_loop: float = 0.0
    seed: int | None = None
    cache_arguments: tuple[str, ...] = ()
    speed: float = 1.0
    time_scale: float = 1.0
    previews: bool = True
    vram_gb: float = 24.0
    ram_gb: float = 64.0
    cpu: bool = False
    max_upload_mb: float = 100.0
    base_dir: Path | None = None
    front_end_root: Path | None = None
    faults: tuple[str, ...] = field(default_factory=tuple)
    record: bool = False
    custom_nodes: bool = False
    authorization: str = field(default="", repr=False)
    tls: tuple[Path, Path] | None = None
    client_ca: Path | None = None


def model_names(names: str) -> tuple[str, ...]:
    """Return model files from a comma-separated list; a bare name gets ComfyUI's usual suffix."""
    stripped = [name.strip() for name in names.split(",") if name.strip()]
    return tuple(name if name.endswith(MODEL_SUFFIXES) else f"{name}.safetensors" for name in stripped)
