"""Custom nodes that keep state in their process: a store of pictures, and a node that waits for a choice."""

from __future__ import annotations

import io
from typing import Any

from aiohttp import web
from PIL import Image

from gateway.simulator.nodes import NodeFunction, Result, Run
from gateway.simulator.values import Images


def _described(name: str, inputs: dict[str, Any], output: list[str], *, is_output: bool) -> dict[str, Any]:
    return {
        "input": {"required": inputs},
        "input_order": {"required": list(inputs)},
        "is_input_list": False,
        "output": output,
        "output_is_list": [False] * len(output),
        "output_name": output,
        "name": name,
        "display_name": name,
        "description": "",
        "python_module": "custom_nodes.gwtest",
        "category": "gwtest",
        "output_node": is_output,
        "has_intermediate_output": False,
        "search_aliases": [],
    }


CLASSES: dict[str, dict[str, Any]] = {
    description["name"]: description
    for description in (
        _described("ETN_LoadImageCache", {"id": ["STRING", {"default": ""}]}, ["IMAGE"], is_output=False),
        _described("ETN_SaveImageCache", {"images": ["IMAGE"]}, [], is_output=True),
        _described("PickerNode", {"label": ["STRING", {"default": ""}]}, ["STRING"], is_output=True),
        _described("Image Filter", {"label": ["STRING", {"default": ""}]}, ["STRING"], is_output=True),
    )
}


class State:
    """State of one process: pictures by id, and choices by the id of a node or a prompt."""

    def __init__(self) -> None:
        self.pictures: dict[str, bytes] = {}
        self.waiting: set[str] = set()
        self.choices: dict[str, str] = {}

    def routes(self) -> list[web.RouteDef]:
        """Return the routes, without /api."""
        return [
            web.put("/etn/image/{id}", self.put_picture),
            web.get("/etn/image/{id}", self.get_picture),
            web.post("/picker", self.post_choice),
            web.post("/picker/{id}", self.post_choice),
        ]

    async def put_picture(self, request: web.Request) -> web.Response:
        """PUT /etn/image/{id}."""
        self.pictures[request.match_info["id"]] = await request.read()
        return web.json_response({"status": "success"})

    async def get_picture(self, request: web.Request) -> web.Response:
        """GET /etn/image/{id}."""
        picture = self.pictures.get(request.match_info["id"])
        if picture is None:
            return web.json_response({"error": "Image not found"}, status=404)
        return web.Response(body=picture, content_type="image/png")

    async def post_choice(self, request: web.Request) -> web.Response:
        """POST /picker/{id}, or /picker with the id in the body: 404 if nothing in this process waits for it."""
        body = await request.json()
        id_ = request.match_info.get("id") or request.query.get("prompt_id") or str(body.get("prompt_id"))
        if id_ not in self.waiting:
            return web.json_response({"error": f"nothing waits for {id_}"}, status=404)
        self.choices[id_] = str(body["choice"])
        return web.json_response({"picked": id_})


async def _load(run: Run, inputs: dict[str, Any]) -> Result:
    data = run.state.pictures.get(inputs["id"])
    if data is None:
        raise ValueError(f"Image with ID {inputs['id']} not found in cache")
    return Result((Images([Image.open(io.BytesIO(data)).convert("RGB")]),))


async def _keep(run: Run, inputs: dict[str, Any]) -> Result:
    kept = []
    for place, image in enumerate(inputs["images"]):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        id_ = f"{run.prompt_id[:8]}-{run.node_id}-{place}"
        run.state.pictures[id_] = buffer.getvalue()
        kept.append({"source": "http", "id": id_, "content-type": "image/png"})
    return Result((), {"images": kept})


async def _pick(run: Run, inputs: dict[str, Any]) -> Result:
    ids = {run.node_id, run.prompt_id}
    run.state.waiting |= ids
    run.tell("picker-waiting", {"id": run.node_id, "unique_id": f"pick-{inputs['label']}"})
    try:
        await run.until(lambda: not ids.isdisjoint(run.state.choices))
    finally:
        run.state.waiting -= ids
    choice = next(run.state.choices.pop(id_) for id_ in ids if id_ in run.state.choices)
    return Result((choice,), {"text": [choice]})


FUNCTIONS: dict[str, NodeFunction] = {
    "ETN_LoadImageCache": _load,
    "ETN_SaveImageCache": _keep,
    "PickerNode": _pick,
    "Image Filter": _pick,
}
