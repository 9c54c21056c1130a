"""The table of routes of synchronous runs and named workflows."""

from __future__ import annotations

from aiohttp.typedefs import Handler

from gateway.web.run.run_routes import get_run, post_run
from gateway.web.run.workflow_routes import (
    PATH,
    delete_workflow,
    get_workflow,
    get_workflows,
    post_workflow_job,
    post_workflow_run,
    put_workflow,
)

ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/gateway/run", post_run),
    ("GET", "/gateway/run/{prompt_id}", get_run),
    ("GET", PATH, get_workflows),
    ("GET", f"{PATH}/{{name}}", get_workflow),
    ("PUT", f"{PATH}/{{name}}", put_workflow),
    ("DELETE", f"{PATH}/{{name}}", delete_workflow),
    ("POST", f"{PATH}/{{name}}/run", post_workflow_run),
    ("POST", f"{PATH}/{{name}}/jobs", post_workflow_job),
)
# Handlers that accept prompts.
ACCEPTING = (post_run, post_workflow_run, post_workflow_job)
