"""Self-description of a simulated ComfyUI: node classes, models, devices, and answers to a starting web UI."""

from __future__ import annotations

import importlib.util
import json
import platform
import sys
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from aiohttp import web

from gateway.comfy import json_codec
from gateway.simulator.executor import Executor
from gateway.simulator.faults import Faults
from gateway.simulator.files import Files
from gateway.simulator.options import SimulatorOptions
from gateway.simulator.prompts import reply
from gateway.simulator.stateful_nodes import CLASSES

VERSION = "0.33.0"
GIB = 1024**3
FOLDERS = (
    "checkpoints configs loras vae text_encoders diffusion_models clip_vision style_models embeddings diffusers "
    "vae_approx controlnet gligen upscale_models latent_upscale_models custom_nodes datasets hypernetworks photomaker "
    "classifiers model_patches audio_encoders background_removal frame_interpolation geometry_estimation optical_flow "
    "detection"
).split()
_MODEL_SUFFIXES = ".bin .ckpt .pkl .pt .pt2 .pth .safetensors .sft".split()
_LOADERS = {
    "checkpoints": ("CheckpointLoaderSimple", "ckpt_name"),
    "diffusion_models": ("UNETLoader", "unet_name"),
    "text_encoders": ("CLIPLoader", "clip_name"),
    "loras": ("LoraLoader", "lora_name"),
}
_NO_MODELS = ("configs", "custom_nodes")
_PLACEHOLDER = "<!doctype html><title>Simulated ComfyUI</title><p>A simulated ComfyUI. No front end is installed.</p>"


def load_object_info(options: SimulatorOptions) -> dict[str, Any]:
    """Return the node classes, with the models that this one has."""
    text = (resources.files("gateway.simulator") / "object_info.json").read_text("utf-8")
    info: dict[str, Any] = json.loads(text)
    for folder, names in _models_of(options).items():
        _list_models(info, folder, names)
    if options.custom_nodes:
        info.update(CLASSES)
    return {name: description for name, description in info.items() if name not in options.without}


def _models_of(options: SimulatorOptions) -> dict[str, Sequence[str]]:
    """Return the models of each folder that has any."""
    return {
        "checkpoints": options.models,
        "diffusion_models": options.unets,
        "text_encoders": options.clips,
        "loras": options.loras,
    }


def _list_models(info: dict[str, Any], folder: str, names: Sequence[str]) -> None:
    """List the models of a folder in the node class that loads them."""
    node_class, input_name = _LOADERS[folder]
    if node_class in info:
        info[node_class]["input"]["required"][input_name][0] = list(names)


class Catalogue:
    """The routes that describe this ComfyUI."""

    def __init__(
        self,
        options: SimulatorOptions,
        files: Files,
        object_info: dict[str, Any],
        features: dict[str, Any],
        executor: Executor,
        faults: Faults,
    ) -> None:
        self._features = features
        self._options = options
        self._files = files
        self._object_info = object_info
        self._executor = executor
        self._faults = faults
        self._born = time.time()
        self._models = _models_of(options)
        # A test's answer to GET /object_info, whatever it is; None for the simulator's own.
        self.odd_answer: bytes | None = None

    def routes(self) -> list[web.RouteDef]:
        """Return the routes, without /api."""
        fixed: dict[str, Any] = {
            "/features": self._features,
            "/embeddings": [],
            "/models": FOLDERS,
            "/extensions": _extensions(front_end(self._options)),
            "/i18n": {},
            "/workflow_templates": {},
            "/global_subgraphs": {},
            "/global_subgraphs/{id}": None,
            "/node_replacements": {},
            "/experiment/models": [
                {"name": name, "folders": [f"/models/{name}"], "extensions": _MODEL_SUFFIXES}
                for name in FOLDERS
                if name not in _NO_MODELS
            ],
            "/internal/logs": "",
            "/internal/logs/raw": {"entries": [], "size": {"cols": 80, "rows": 24}},
            "/internal/folder_paths": {name: [f"/models/{name}"] for name in FOLDERS},
        }
        disabled = {
            "error": {
                "code": "SERVICE_DISABLED",
                "message": "Assets system is disabled. Start the server with --enable-assets to use this feature.",
                "details": {},
            }
        }
        return [
            *(web.get(path, _fixed(value)) for path, value in fixed.items()),
            *(web.get(path, _fixed(disabled, 503)) for path in ("/api/assets", "/api/assets/seed/status", "/api/tags")),
            web.get("/object_info", self.get_object_info),
            web.get("/object_info/{node_class}", self.get_class),
            web.get("/models/{folder}", self.get_models),
            web.get("/view_metadata/{folder}", self.get_metadata),
            web.get("/system_stats", self.get_system_stats),
            web.get("/experiment/models/{folder}", self.get_model_files),
            web.patch("/internal/logs/subscribe", self.subscribe_logs),
            web.get("/internal/files/{kind}", self.get_folder),
        ]

    def _current(self) -> dict[str, Any]:
        return self._files.listed_in(self._object_info)

    async def get_object_info(self, _: web.Request) -> web.Response:
        """GET /object_info."""
        if self.odd_answer is not None:
            return web.Response(body=self.odd_answer, content_type="application/json")
        return reply(self._current())

    async def get_class(self, request: web.Request) -> web.Response:
        """GET /object_info/{node_class}."""
        name, info = request.match_info["node_class"], self._current()
        return reply({name: info[name]} if name in info else {})

    async def get_models(self, request: web.Request) -> web.Response:
        """GET /models/{folder}."""
        names = self._model_names(request.match_info["folder"])
        return web.Response(status=404) if names is None else reply(names)

    async def get_model_files(self, request: web.Request) -> web.Response:
        """GET /experiment/models/{folder}."""
        names = self._model_names(request.match_info["folder"])
        if names is None:
            return web.Response(status=404)
        about = {"pathIndex": 0, "modified": self._born, "created": self._born, "size": 6 * GIB}
        return reply([{"name": name, **about} for name in names])

    def _model_names(self, folder: str) -> list[str] | None:
        return list(self._models.get(folder, ())) if folder in FOLDERS else None

    def set_models(self, folder: str, names: Sequence[str]) -> None:
        """Have these models in a folder from now on, as if somebody had copied files there."""
        self._models[folder] = names
        _list_models(self._object_info, folder, names)

    async def subscribe_logs(self, request: web.Request) -> web.Response:
        """PATCH /internal/logs/subscribe: there is nothing to be told of."""
        body = json_codec.loads(await request.read())
        return web.Response(status=200 if {"clientId", "enabled"} <= body.keys() else 500)

    async def get_metadata(self, _: web.Request) -> web.Response:
        """GET /view_metadata/{folder}: no model here has any."""
        return web.Response(status=404)

    async def get_folder(self, request: web.Request) -> web.Response:
        """GET /internal/files/{kind}."""
        kind = request.match_info["kind"]
        if kind not in ("input", "output", "temp"):
            return reply({"error": "Invalid directory type"}, 400)
        names = sorted(entry.name for entry in self._files.folder(kind).iterdir() if entry.is_file())
        return reply([f"{name} [{kind}]" for name in names])

    async def get_system_stats(self, _: web.Request) -> web.Response:
        """GET /system_stats."""
        total = int(self._options.vram_gb * GIB)
        leak = self._faults.get("leak-vram")
        used = self._executor.memory.used_vram() + int(leak.number * GIB if leak else 0)
        free = max(total - used, 0)
        device = {
            "name": "cpu" if self._options.cpu else "cuda:0 NVIDIA Simulated : native",
            "type": "cpu" if self._options.cpu else "cuda",
            "index": None if self._options.cpu else 0,
            "vram_total": total,
            "vram_free": free,
            "torch_vram_total": total - free,
            "torch_vram_free": 0,
        }
        system = {
            "os": sys.platform,
            "ram_total": int(self._options.ram_gb * GIB),
            "ram_free": int(self._executor.free_ram()),
            "comfyui_version": VERSION,
            "required_frontend_version": None,
            "installed_templates_version": None,
            "required_templates_version": None,
            "comfy_package_versions": [],
            "python_version": f"{platform.python_version()} (simulated)",
            "pytorch_version": "2.13.0+simulated",
            "embedded_python": False,
            "deploy_environment": "local-git",
            "argv": ["main.py", *(["--cpu"] if self._options.cpu else ()), *self._options.cache_arguments],
        }
        if self._faults.get("no-version"):
            del system["comfyui_version"]
        return reply({"system": system, "devices": [device]})


def _fixed(value: Any, status: int = 200) -> Any:
    async def answer(_: web.Request) -> web.Response:
        return reply(value, status)

    return answer


def front_end(options: SimulatorOptions) -> Path | None:
    """Return the web UI's folder: from the options, else of the installed front-end package; None without either."""
    root = options.front_end_root
    if root is None and (spec := importlib.util.find_spec("comfyui_frontend_package")) and spec.origin:
        root = Path(spec.origin).parent / "static"
    return root


def _extensions(root: Path | None) -> list[str]:
    scripts = () if root is None else (root / "extensions").rglob("*.js")
    return [f"/{path.relative_to(root).as_posix()}" for path in scripts if root is not None]


def add_front_end(app: web.Application, root: Path | None) -> None:
    """Serve the web UI from `root`, or a placeholder."""

    async def index(_: web.Request) -> web.StreamResponse:
        headers = {"Cache-Control": "no-store, must-revalidate", "Pragma": "no-cache", "Expires": "0"}
        if root is None:
            return web.Response(text=_PLACEHOLDER, content_type="text/html", headers=headers)
        return web.FileResponse(root / "index.html", headers=headers)

    app.router.add_get("/", index)
    if root is not None:
        app.router.add_static("/", root)
