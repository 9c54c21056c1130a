"""The application: every route and its handler, in one table."""

from __future__ import annotations

import aiohttp_cors
from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.tenants.roles import AnsweredHere
from gateway.web.guard.context import CONTEXT, Context, caller, context_of
from gateway.web.guard.cross_origin import is_preflight
from gateway.web.guard.gate import Gate
from gateway.web.guard.refused_prompts import refusals_logged
from gateway.web.http.base_path import BASE_PATH, add_slash
from gateway.web.http.client_address import PROXIES, TrustedProxies
from gateway.web.http.refused_origins import REFUSED_ORIGINS, RefusedOrigins, note_refused_preflight
from gateway.web.http.request_keys import GRANT
from gateway.web.http.request_log import RequestLog
from gateway.web.http.responses import problem
from gateway.web.routes import (
    backend_sweep,
    catalogue,
    etas,
    history,
    jobs,
    keys,
    openapi,
    operations,
    owner,
    passthrough,
    poisonous,
    prompt,
    queue,
    routing,
    sign_in,
    stored_files,
    uploads,
    userdata,
    view,
    webhooks,
)
from gateway.web.run import table as run_table
from gateway.web.server.parser_feed import INTAKES, ParserFeed
from gateway.web.v2 import table
from gateway.web.v2.job_routes import post_job
from gateway.web.v2.service import V2, V2_KEY


async def socket(request: web.Request) -> web.StreamResponse:
    """Serve GET /ws."""
    tenant = caller(request).tenant
    with context_of(request).limits.socket(tenant):
        # From here on the hub checks the grant, because it closes a socket, while `connections.py` would cut it off.
        return await context_of(request).hub.serve(request, tenant, request.pop(GRANT))


# ComfyUI's routes, each also under /api (server.py, add_routes).
COMFYUI: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/prompt", prompt.post_prompt),
    ("GET", "/prompt", prompt.get_prompt),
    ("GET", "/queue", queue.get_queue),
    ("POST", "/queue", queue.post_queue),
    ("POST", "/interrupt", queue.post_interrupt),
    ("POST", "/free", queue.post_free),
    ("GET", "/history", history.get_history),
    ("GET", "/history/{prompt_id}", history.get_history_entry),
    ("POST", "/history", history.post_history),
    ("GET", "/view", view.get_view),
    ("POST", "/upload/image", uploads.post_image),
    ("POST", "/upload/mask", uploads.post_mask),
    ("GET", "/object_info", catalogue.get_object_info),
    ("GET", "/object_info/{node_class}", catalogue.get_node_class),
    ("GET", "/models", catalogue.get_listing),
    ("GET", "/models/{folder}", catalogue.get_listing),
    ("GET", "/embeddings", catalogue.get_listing),
    ("GET", "/experiment/models", catalogue.get_listing),
    ("GET", "/experiment/models/{folder}", catalogue.get_listing),
    ("GET", "/experiment/models/preview/{path:.*}", catalogue.get_from_any),
    ("GET", "/view_metadata/{folder}", catalogue.get_from_any),
    ("GET", "/internal/files/{kind}", catalogue.get_listing),
    ("GET", "/users", userdata.get_users),
    ("GET", "/settings", userdata.get_settings),
    ("POST", "/settings", userdata.post_settings),
    ("GET", "/settings/{id}", userdata.get_setting),
    ("POST", "/settings/{id}", userdata.post_setting),
    ("GET", "/userdata", userdata.list_files),
    ("GET", "/v2/userdata", userdata.list_tree),
    ("GET", "/userdata/{file}", userdata.get_file),
    ("POST", "/userdata/{file}", userdata.post_file),
    ("DELETE", "/userdata/{file}", userdata.delete_file),
    ("POST", "/userdata/{file}/move/{dest}", userdata.move_file),
    ("GET", "/system_stats", catalogue.get_system_stats),
    ("GET", "/features", catalogue.get_features),
    ("GET", "/ws", socket),
)
# ComfyUI has these with /api in their own path, and so under /api/api as well.
JOBS: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/api/jobs", jobs.get_jobs),
    ("GET", "/api/jobs/{job_id}", jobs.get_job),
    ("POST", "/api/jobs/cancel", jobs.cancel_jobs),
    ("POST", "/api/jobs/{job_id}/cancel", jobs.cancel_job),
)
OWN: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/healthz", operations.healthz),
    ("GET", "/readyz", operations.readyz),
    ("GET", "/metrics", operations.metrics),
    ("GET", "/gateway/openapi.json", openapi.get_openapi),
    ("GET", "/gateway/signin", sign_in.get_sign_in),
    ("POST", "/gateway/signin", sign_in.post_sign_in),
    ("POST", "/gateway/signout", sign_in.post_sign_out),
    ("GET", "/gateway/keys", keys.get_keys),
    ("POST", "/gateway/keys", keys.post_key),
    ("POST", "/gateway/keys/{name}/rotate", keys.rotate_key),
    ("DELETE", "/gateway/keys/{name}", keys.delete_key),
    ("GET", "/gateway/backends", operations.get_backends),
    ("GET", "/gateway/packs", operations.get_packs),
    ("GET", "/gateway/differences", operations.get_differences),
    ("GET", "/gateway/routing", routing.get_routing),
    ("DELETE", "/gateway/routing/times", routing.delete_times),
    ("DELETE", "/gateway/routing/out_of_memory", routing.delete_shortages),
    ("GET", "/gateway/poisonous", poisonous.get_poisonous),
    ("DELETE", "/gateway/poisonous/{id}", poisonous.delete_poisonous),
    ("POST", "/gateway/backends/{name}/{action:drain|resume}", operations.set_drain),
    ("POST", "/gateway/api/v1/backends/{name}/sweep", backend_sweep.post_sweep),
    ("GET", "/gateway/api/v1/me/jobs", etas.get_own_jobs),
    ("GET", "/gateway/api/v1/me/jobs/{prompt_id}", etas.get_own_job),
    ("DELETE", "/gateway/api/v1/me/jobs/{prompt_id}", owner.delete_job),
    ("GET", "/gateway/api/v1/me/uploads", owner.get_uploads),
    ("DELETE", "/gateway/api/v1/me/uploads", owner.delete_upload),
    ("GET", "/gateway/stored/{tenant}/{job}/{name}", stored_files.get_stored),
    *webhooks.ROUTES,
    *run_table.ROUTES,
)
_ANY_PATH = "/{path:.*}"
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def make_app(gateway: Context, v2: V2) -> web.Application:
    """Return the application that serves a gateway, with the parts of the Comfy API v2."""
    app = web.Application(client_max_size=gateway.settings.server.max_body)
    app[CONTEXT] = gateway
    app[V2_KEY] = v2
    v2.send_file = view.send_known
    app[BASE_PATH] = gateway.settings.server.base_path
    app[PROXIES] = TrustedProxies(gateway.settings.server.trusted_proxies)
    app[REFUSED_ORIGINS] = RefusedOrigins()
    intakes: dict[web.RequestHandler, ParserFeed] = {}
    app[INTAKES] = intakes
    gate = Gate(gateway, intakes, RequestLog(gateway.settings))
    for method, path, handler in OWN:
        guarded = gate.guard(handler, method, path)
        _add(app, method, path, refusals_logged(guarded) if handler in run_table.ACCEPTING else guarded)
    for method, path, handler in JOBS + COMFYUI:
        for full_path in (path, "/api" + path):
            guarded = gate.guard(handler, method, full_path)
            _add(app, method, full_path, refusals_logged(guarded) if handler is prompt.post_prompt else guarded)
    for method, path, handler in table.ROUTES:
        guarded = gate.guard(handler, method, path)
        _add(app, method, path, refusals_logged(guarded) if handler is post_job else guarded)
    for method in _METHODS:
        _add(app, method, table.REST, gate.guard(table.refuse_unknown, method, table.REST))
    app[passthrough.ANSWERED_HERE] = AnsweredHere(path for _, path, _ in OWN + JOBS + COMFYUI + table.ROUTES)
    app[passthrough.OWN_METHODS] = passthrough.OwnMethods((method, path) for method, path, _ in OWN)
    if app[BASE_PATH]:
        # No gate: the answer tells nothing, and a browser has no cookie for this path yet.
        _add(app, "GET", app[BASE_PATH], add_slash)
    for method in _METHODS:
        _add(app, method, _ANY_PATH, gate.guard(passthrough.pass_on, method, "/{path}", passes_on=True))
    if gateway.settings.server.tls.hsts is not None:
        _say_https_only(app, gateway.settings.server.tls.hsts)
    if gateway.settings.cors.origins:
        _allow_origins(app, gateway.settings.cors.origins)
    # aiohttp's own 405 is garbage in circles. To collect thousands takes 100 ms, and strangers may cause them.
    app.router.add_route("*", _ANY_PATH, _refuse_method)
    return app


async def _refuse_method(request: web.Request) -> web.Response:
    if is_preflight(request):
        note_refused_preflight(request)
    details = f"{request.method} is not answered, on any path; use one of the methods that Allow names"
    return problem(405, "method_not_allowed", "Method Not Allowed", details, {"Allow": ", ".join((*_METHODS, "HEAD"))})


def _say_https_only(app: web.Application, seconds: int) -> None:
    async def say(_: web.Request, response: web.StreamResponse) -> None:
        response.headers["Strict-Transport-Security"] = f"max-age={seconds}"

    app.on_response_prepare.append(say)


def _add(app: web.Application, method: str, path: str, handler: Handler) -> None:
    if method == "GET":
        app.router.add_get(path, handler, allow_head=True, expect_handler=_say_nothing)
    else:
        app.router.add_route(method, path, handler, expect_handler=_say_nothing)


async def _say_nothing(_: web.Request) -> None:
    """Answer no Expect header, because the gate does so once a request is admitted. No stranger is asked for a body."""


def _allow_origins(app: web.Application, origins: tuple[str, ...]) -> None:
    options = aiohttp_cors.ResourceOptions(  # type: ignore[no-untyped-call]
        allow_credentials=True, expose_headers="*", allow_headers="*", allow_methods="*"
    )
    cors = aiohttp_cors.setup(app, defaults=dict.fromkeys(origins, options))
    for route in list(app.router.routes()):
        cors.add(route)
