"""Custom nodes that keep state in their process: a store of pictures, and nodes that wait for a choice.

The store's requests have the form of comfyui-tooling-nodes (api.py, nodes.py), those of "Image Filter" the form of
cg-image-filter (image_filter_messaging.py, image_filter_nodes.py).
"""

from __future__ import annotations

import io
import json
import uuid
from typing import Any

from aiohttp import web
from PIL import Image

from gateway.simulator.nodes import NodeFunction, Run
from gateway.simulator.values import Images, Result


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
        _described(
            "ETN_SaveImageCache",
            {"images": ["IMAGE"], "format": ["COMBO", {"default": "PNG", "options": ["PNG", "JPEG"]}]},
            [],
            is_output=True,
        ),
        _described("PickerNode", {"label": ["STRING", {"default": ""}]}, ["STRING"], is_output=True),
        _described("Image Filter", {"graph_id": ["STRING", {"default": ""}]}, ["STRING"], is_output=True),
    )
}


class State:
    """State of one process: pictures by id, choices by the id of a node or a prompt, and one filter that waits."""

    def __init__(self) -> None:
        self.pictures: dict[str, bytes] = {}
        self.waiting: set[str] = set()
        self.choices: dict[str, str] = {}
        self.filtering: str | None = None
        self.filtered: list[Any] | None = None

    def routes(self) -> list[web.RouteDef]:
        """Return the routes, without /api."""
        return [
            web.put("/etn/image/{id}", self.put_picture),
            web.get("/etn/image/{id}", self.get_picture),
            web.post("/picker", self.post_choice),
            web.post("/picker/{id}", self.post_choice),
            web.post("/cg-image-filter-message", self.post_selection),
        ]

    async def put_picture(self, request: web.Request) -> web.Response:
        """PUT /etn/image/{id}: 200 if the process has the id, whatever the picture."""
        picture = await request.read()
        if request.match_info["id"] in self.pictures:
            return web.json_response({"status": "cached"})
        self.pictures[request.match_info["id"]] = picture
        return web.json_response({"status": "success"}, status=201)

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

    async def post_selection(self, request: web.Request) -> web.Response:
        """POST /cg-image-filter-message: the answer is the same if nothing in this process waits for it."""
        message = json.loads(str((await request.post())["response"]))
        if self.filtering is not None and message["graph_id"] == self.filtering:
            self.filtered = message["selection"]
        return web.json_response({})


async def _load(run: Run, inputs: dict[str, Any]) -> Result:
    data = run.state.pictures.get(inputs["id"])
    if data is None:
        raise ValueError(f"Image with ID {inputs['id']} not found in cache")
    return Result((Images([Image.open(io.BytesIO(data)).convert("RGB")]),))


async def _keep(run: Run, inputs: dict[str, Any]) -> Result:
    kept = []
    for image in inputs["images"]:
        buffer = io.BytesIO()
        image.save(buffer, inputs["format"])
        id_ = uuid.uuid4().hex
        run.state.pictures[id_] = buffer.getvalue()
        content_type = f"image/{inputs['format'].lower()}"
        kept.append({"source": "http", "id": id_, "content-type": content_type, "type": "output"})
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


async def _filter(run: Run, inputs: dict[str, Any]) -> Result:
    run.state.filtering, run.state.filtered = inputs["graph_id"], None
    run.tell("cg-image-filter-images", {"graph_id": inputs["graph_id"], "urls": []})
    try:
        await run.until(lambda: run.state.filtered is not None)
    finally:
        run.state.filtering = None
    return Result((str(run.state.filtered),), {"text": [str(run.state.filtered)]})


FUNCTIONS: dict[str, NodeFunction] = {
    "ETN_LoadImageCache": _load,
    "ETN_SaveImageCache": _keep,
    "PickerNode": _pick,
    "Image Filter": _filter,
}
