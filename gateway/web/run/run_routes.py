"""POST /gateway/run, and GET /gateway/run/{prompt_id}."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from gateway.comfy.errors import is_prompt_id
from gateway.web.guard.context import context_of
from gateway.web.http.request_body import read_json
from gateway.web.http.responses import problem
from gateway.web.run.running import Run, result, run, seconds_of


async def post_run(request: web.Request) -> web.StreamResponse:
    """Run the prompt in the body, and answer with an output, with JSON, or 202 after a time."""

    async def prepare(grow: Callable[[int], None]) -> Run:
        return Run(await read_json(request, context_of(request).settings.dispatch.max_prompt_bytes, grow), {})

    return await run(request, prepare, seconds=seconds_of(request))


async def get_run(request: web.Request) -> web.StreamResponse:
    """Answer with the result of a job in the same way."""
    prompt_id = request.match_info["prompt_id"]
    if not is_prompt_id(prompt_id):
        return problem(404, "unknown_job", "There is no such job", f"{prompt_id[:100]} is no prompt_id")
    return await result(request, prompt_id)
