"""/prompt, /queue, /history, /interrupt, /free and /api/jobs (server.py)."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from aiohttp import web

from gateway.comfy import json_codec
from gateway.comfy.errors import invalid_prompt_id, is_prompt_id, no_prompt
from gateway.comfy.jobs_api import job_of_history, job_of_queue_item, list_jobs, parse_jobs_query
from gateway.comfy.true_types import is_link
from gateway.comfy.validation import CustomCheck, validate_prompt
from gateway.simulator.bodies import read_json
from gateway.simulator.calls import expanded
from gateway.simulator.executor import Executor
from gateway.simulator.files import OutsideFolder
from gateway.simulator.queue import Item, PromptQueue

SECRET_KEYS = ("auth_token_comfy_org", "api_key_comfy_org")


class Prompts:
    """The routes of prompts and jobs."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._queue: PromptQueue = executor.queue
        self._number = 0

    def routes(self) -> list[web.RouteDef]:
        """Return the routes, without /api."""
        return [
            web.get("/prompt", self.get_prompt),
            web.post("/prompt", self.post_prompt),
            web.get("/queue", self.get_queue),
            web.post("/queue", self.post_queue),
            web.post("/interrupt", self.post_interrupt),
            web.post("/free", self.post_free),
            web.get("/history", self.get_history),
            web.get("/history/{prompt_id}", self.get_entry),
            web.post("/history", self.post_history),
            web.get("/api/jobs", self.get_jobs),
            web.get("/api/jobs/{job_id}", self.get_job),
            web.post("/api/jobs/cancel", self.cancel_jobs),
            web.post("/api/jobs/{job_id}/cancel", self.cancel_job),
        ]

    async def get_prompt(self, _: web.Request) -> web.Response:
        """GET /prompt."""
        return reply({"exec_info": {"queue_remaining": self._queue.remaining}})

    async def post_prompt(self, request: web.Request) -> web.Response:
        """POST /prompt. What a ComfyUI answers with a bare 500 raises here, and becomes one."""
        body = await read_json(request)
        await self._executor.faults.until_off("hold-prompt")
        number = self._take_number(body)
        if "prompt" not in body:
            return reply(no_prompt(), 400)
        prompt_id = body.get("prompt_id")
        if prompt_id is not None and not is_prompt_id(prompt_id):
            return reply(invalid_prompt_id(), 400)
        if prompt_id is None or self._executor.faults.get("no-prompt-id"):
            prompt_id = str(uuid.uuid4())
        prompt: dict[str, Any] = body["prompt"]
        _apply_replacements(prompt, self._executor.object_info)
        _check_titles(prompt, self._executor.object_info)
        checked = validate_prompt(
            prompt,
            expanded(self._executor.files.listed_in(self._executor.object_info)),
            partial_execution_targets=body.get("partial_execution_targets"),
            custom=self._custom_checks(),
        )
        # As ComfyUI, take extra_data without a look at its type, also of a prompt that is refused.
        extra = _member(body, "extra_data", {})
        if "client_id" in body:
            extra["client_id"] = body["client_id"]
        if "comfy_usage_source" not in extra and (source := request.headers.get("Comfy-Usage-Source")):
            extra["comfy_usage_source"] = source
        if not checked.valid:
            return reply(checked.body(), 400)
        sensitive = {key: extra.pop(key) for key in SECRET_KEYS if key in extra}
        extra["create_time"] = int(time.time() * 1000)
        self._queue.put(Item(number, prompt_id, prompt, extra, checked.outputs, sensitive))
        if self._executor.faults.take("drop-answer") and request.transport is not None:
            request.transport.abort()
        await self._executor.faults.until_off("hold-answer")
        return reply({"prompt_id": prompt_id, "number": number, "node_errors": checked.node_errors})

    def _take_number(self, body: Any) -> float:
        if "number" in body:
            return float(body["number"])
        number, self._number = self._number, self._number + 1
        return -number if _member(body, "front") else number

    def _custom_checks(self) -> dict[str, CustomCheck]:
        """LoadImage and its kin look for the file themselves (nodes.py, VALIDATE_INPUTS)."""
        images = dict.fromkeys(("LoadImage", "LoadImageMask", "LoadImageOutput"), self._file_check("image", "image"))
        return {
            **images,
            "LoadAudio": self._file_check("audio", "audio"),
            "LoadVideo": self._file_check("file", "video"),
            "Load3D": self._file_check("model_file", "3D model", ("", "none", None)),
        }

    def _file_check(self, input_name: str, kind: str, empty: tuple[str | None, ...] = ()) -> CustomCheck:
        def check(inputs: Any) -> list[tuple[str, str]]:
            name = inputs.get(input_name)
            if is_link(name):
                # ComfyUI validates with None, because nobody knows the value yet.
                name = None
            if name in empty:
                return []
            if not isinstance(name, str):
                raise AttributeError(f"{type(name).__name__!r} object has no attribute 'endswith'")
            try:
                is_there = self._executor.files.path_of(name).exists()
            except OutsideFolder:
                is_there = False
            return [] if is_there else [(input_name, f"{input_name} - Invalid {kind} file: {name}")]

        return frozenset({input_name}), check

    def _items(self) -> tuple[list[Any], list[Any]]:
        running = [] if self._queue.running is None else [self._queue.running.shown()]
        return running, [item.shown() for item in self._queue.pending]

    async def get_queue(self, _: web.Request) -> web.Response:
        """GET /queue."""
        running, pending = self._items()
        return reply({"queue_running": running, "queue_pending": pending})

    async def post_queue(self, request: web.Request) -> web.Response:
        """POST /queue."""
        body = await read_json(request)
        if _member(body, "clear"):
            self._queue.clear()
        for prompt_id in _member(body, "delete", ()):
            self._queue.delete(prompt_id)
        return web.Response()

    async def post_interrupt(self, request: web.Request) -> web.Response:
        """POST /interrupt."""
        try:
            body = await read_json(request)
        except json.JSONDecodeError:
            body = {}
        prompt_id = None if self._executor.faults.get("interrupt-any") else body.get("prompt_id")
        self._queue.interrupt(prompt_id or None)
        return web.Response()

    async def post_free(self, request: web.Request) -> web.Response:
        """POST /free."""
        body = await read_json(request)
        unload_models, free_memory = bool(body.get("unload_models")), bool(body.get("free_memory"))
        self._executor.free(unload_models=unload_models, free_memory=free_memory)
        return web.Response()

    async def get_history(self, request: web.Request) -> web.Response:
        """GET /history."""
        query = request.rel_url.query
        maximum = int(query["max_items"]) if "max_items" in query else None
        return reply(self._queue.get_history(maximum, int(query.get("offset", -1))))

    async def get_entry(self, request: web.Request) -> web.Response:
        """GET /history/{prompt_id}."""
        prompt_id = request.match_info["prompt_id"]
        entry = self._queue.history.get(prompt_id)
        return reply({} if entry is None else {prompt_id: entry})

    async def post_history(self, request: web.Request) -> web.Response:
        """POST /history."""
        body = await read_json(request)
        if _member(body, "clear"):
            self._queue.history.clear()
        for prompt_id in _member(body, "delete", ()):
            self._queue.history.pop(prompt_id, None)
        return web.Response()

    async def get_jobs(self, request: web.Request) -> web.Response:
        """GET /api/jobs."""
        query = parse_jobs_query(request.rel_url.query)
        if isinstance(query, str):
            return reply({"error": query}, 400)
        running, pending = self._items()
        jobs = [job_of_queue_item(item, "in_progress") for item in running]
        jobs += [job_of_queue_item(item, "pending") for item in pending]
        history = self._queue.history.items()
        jobs += [job_of_history(prompt_id, entry, include_outputs=False) for prompt_id, entry in history]
        return reply(list_jobs(jobs, query))

    async def get_job(self, request: web.Request) -> web.Response:
        """GET /api/jobs/{job_id}."""
        job_id = request.match_info["job_id"]
        entry = self._queue.history.get(job_id)
        if entry is not None:
            return reply(job_of_history(job_id, entry, include_outputs=True))
        for items, status in zip(self._items(), ("in_progress", "pending"), strict=True):
            for item in items:
                if item[1] == job_id:
                    return reply(job_of_queue_item(item, status))
        return reply({"error": "Job not found"}, 404)

    async def cancel_job(self, request: web.Request) -> web.Response:
        """POST /api/jobs/{job_id}/cancel."""
        return reply({"cancelled": self._cancel(request.match_info["job_id"])})

    async def cancel_jobs(self, request: web.Request) -> web.Response:
        """POST /api/jobs/cancel."""
        try:
            body = await read_json(request)
        except json.JSONDecodeError:
            return reply({"error": "Request body must be valid JSON"}, 400)
        ids = body.get("job_ids") if isinstance(body, dict) else None
        if not isinstance(ids, list):
            return reply({"error": "job_ids must be a list"}, 400)
        invalid = [item if isinstance(item, str) else repr(item) for item in ids if not is_prompt_id(item)]
        if invalid:
            return reply({"error": "job_ids contains invalid id(s)", "invalid_ids": invalid}, 400)
        return reply({"cancelled": bool([prompt_id for prompt_id in ids if self._cancel(prompt_id)])})

    def _cancel(self, prompt_id: str) -> bool:
        return self._queue.interrupt(prompt_id) or self._queue.delete(prompt_id)


def _member(body: Any, name: str, default: Any = None) -> Any:
    """Return a member of a body as ComfyUI looks it up, also in a list or a text, which have no such members.

    Raises:
        TypeError: the body is a list or a text that holds the name, or is neither.
    """
    if name in body:
        return body[name]
    return default


def _apply_replacements(prompt: dict[str, Any], object_info: dict[str, Any]) -> None:
    """Look through all nodes as app/node_replace_manager.py does; nothing is replaced.

    Raises:
        AttributeError, TypeError: a node, its class or its inputs have another type. ComfyUI answers a bare 500.
    """
    for node in prompt.values():
        if "class_type" not in node or "inputs" not in node:
            continue
        object_info.get(node["class_type"])
        node["inputs"].items()


def _check_titles(prompt: dict[str, Any], object_info: dict[str, Any]) -> None:
    """Raise AttributeError if the first node of an unknown class has a ``_meta`` that is no object, as ComfyUI does."""
    for node in prompt.values():
        if "class_type" not in node or node["class_type"] not in object_info:
            node.get("_meta", {}).get("title")
            return


def reply(value: Any, status: int = 200) -> web.Response:
    """Return a JSON answer with ComfyUI's headers."""
    headers = {"Content-Type": "application/json; charset=utf-8"}
    return web.Response(body=json_codec.dumps_exact(value), status=status, headers=headers)
