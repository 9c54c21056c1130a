"""One simulated ComfyUI: put together, started and stopped."""

from __future__ import annotations

import asyncio
import signal
import ssl
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from aiohttp import web

from gateway.comfy import json_codec
from gateway.simulator import catalogue
from gateway.simulator.catalogue import Catalogue, add_front_end, front_end, load_object_info
from gateway.simulator.executor import Executor
from gateway.simulator.faults import Faults, UnknownFault
from gateway.simulator.files import Files
from gateway.simulator.media import Media
from gateway.simulator.oddities import Oddities
from gateway.simulator.options import SimulatorOptions
from gateway.simulator.prompts import Prompts, reply
from gateway.simulator.queue import PromptQueue
from gateway.simulator.sockets import Sockets
from gateway.simulator.userdata import UserData

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_OWN = "/simulator"
# Requests that are kept with --record; of more the last ones.
MAX_RECORDED = 10_000


class Simulator:
    """A simulated ComfyUI. `start`, then `close`.

    Attributes:
        instance: the simulator that was started last. Code in a prompt can reach it, and with it everybody's prompts,
            as with ComfyUI's PromptServer.instance.
    """

    instance: ClassVar[Simulator | None] = None

    def __init__(self, options: SimulatorOptions) -> None:
        self.options = options
        self.port = options.port
        self.requests: Counter[str] = Counter()
        self._recorded: deque[dict[str, Any]] = deque(maxlen=MAX_RECORDED)
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Return the URL at which the simulator listens."""
        return f"{'https' if self.options.tls else 'http'}://{self.options.host}:{self.port}"

    async def start(self) -> None:
        """Listen, and begin to run prompts."""
        options = self.options
        if options.base_dir is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="simulated-comfyui-")
        base = options.base_dir or Path(self._scratch.name if self._scratch else ".")
        self.files = Files(base)
        self.faults = Faults(options.faults)
        self.oddities = Oddities()
        self.sockets = Sockets(options.max_upload_mb, self.faults, self.oddities)
        self.queue = PromptQueue(self._queue_updated)
        object_info = load_object_info(options)
        self.executor = Executor(options, self.queue, self.sockets, self.files, self.faults, object_info)
        Simulator.instance = self
        self._runner = web.AppRunner(self._app(object_info), access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        self._tls = _context(options)
        self._site = web.TCPSite(self._runner, options.host, options.port, ssl_context=self._tls)
        await self._site.start()
        self.port = int(self._runner.addresses[0][1])
        self._tasks = [asyncio.create_task(self.sockets.publish()), asyncio.create_task(self.executor.run())]
        if (refusing := self.faults.take("refuse")) is not None:
            self._tasks.append(asyncio.create_task(self._refuse(refusing.number if refusing.argument else 5.0)))

    async def _refuse(self, seconds: float) -> None:
        """Let nobody connect for a while, as while a process is down; prompts go on."""
        assert self._runner is not None
        await self._site.stop()
        for transport in [c.transport for c in (self._runner.server.connections if self._runner.server else ())]:
            if transport is not None:
                transport.abort()
        await asyncio.sleep(seconds)
        self._site = web.TCPSite(self._runner, self.options.host, self.port, ssl_context=self._tls)
        await self._site.start()

    @property
    def publishing(self) -> asyncio.Task[None]:
        """Return the task that sends messages to sockets; it ends only by a fault, as ComfyUI's publish_loop."""
        return self._tasks[0]

    def _queue_updated(self) -> None:
        self.sockets.send("status", {"status": {"exec_info": {"queue_remaining": self.queue.remaining}}}, None)

    def _app(self, object_info: dict[str, Any]) -> web.Application:
        app = web.Application(
            client_max_size=round(self.options.max_upload_mb * 1024 * 1024), middlewares=[self._middleware]
        )
        self.catalogue = Catalogue(
            self.options, self.files, object_info, self.sockets.features, self.executor, self.faults
        )
        parts = (Prompts(self.executor), Media(self.files, self.faults), UserData(self.files), self.catalogue)
        custom = self.executor.state.routes() if self.options.custom_nodes else []
        for routes in (*(part.routes() for part in parts), custom):
            for route in routes:
                for path in (route.path, f"/api{route.path}"):
                    app.add_routes([web.RouteDef(route.method, path, route.handler, dict(route.kwargs))])
        app.router.add_get("/ws", self._serve_socket)
        app.router.add_get("/api/ws", self._serve_socket)
        app.router.add_get(f"{_OWN}/requests", self._get_requests)
        app.router.add_get(f"{_OWN}/recorded", self._get_recorded)
        app.router.add_route("*", f"{_OWN}/faults", self._set_faults)
        app.router.add_post(f"{_OWN}/broadcast", self._broadcast)
        app.router.add_post(f"{_OWN}/object_info", self._set_object_info)
        app.router.add_post(f"{_OWN}/models/{{folder}}", self._set_models)
        app.router.add_post(f"{_OWN}/speed", self._set_speed)
        add_front_end(app, front_end(self.options))
        return app

    async def _serve_socket(self, request: web.Request) -> web.StreamResponse:
        socket = self.sockets.serve(request, self.queue.remaining)
        if self.faults.get("drop-socket"):
            asyncio.get_running_loop().call_later(0.05, self.sockets.drop)
        return await socket

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not request.path.startswith(_OWN):
            resource = request.match_info.route.resource
            self.requests[f"{request.method} {resource.canonical if resource else request.path}"] += 1
            if self.options.authorization not in ("", request.headers.get("Authorization")):
                return web.Response(status=401, headers={"WWW-Authenticate": f'Basic realm="{self.url}"'})
            if self.options.record:
                self._recorded.append(await _record(request))
            refusal = _foreign(request) or await self._fault(request)
            if refusal is not None:
                return refusal
        if request.method == "OPTIONS":
            return web.Response()
        try:
            response = await handler(request)
            is_odd = self.faults.get("odd") is not None and not request.path.startswith(_OWN)
            return self.oddities.instead_of(response) if is_odd else response
        except ConnectionResetError:
            # The peer went away while its socket was being set up.
            return web.Response(status=499)
        except (
            ArithmeticError,
            AssertionError,
            AttributeError,
            LookupError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
        ):
            # Where ComfyUI's handlers trip over a body of another shape, aiohttp answers this.
            return _bare_500()

    async def _fault(self, request: web.Request) -> web.Response | None:
        if self.faults.get("hang"):
            await asyncio.get_running_loop().create_future()
        if (slow := self.faults.get("slow")) is not None:
            await asyncio.sleep(slow.number)
        failing = self.faults.get("500")
        path = request.path.removeprefix("/api") or "/"
        if self._is_too_old_for(path):
            # ComfyUI's static files answer for every path, but only to GET.
            return web.Response(status=404 if request.method == "GET" else 405)
        if failing is not None and failing.is_of(path):
            return _bare_500()
        return None

    def _is_too_old_for(self, path: str) -> bool:
        without = {"/jobs": "no-jobs", "/features": "no-features"}
        return any(path.startswith(start) and self.faults.get(fault) for start, fault in without.items())

    async def _get_requests(self, _: web.Request) -> web.Response:
        """Return the requests by route since the start, so that a test can prove that none reached a backend."""
        return reply(dict(self.requests))

    async def _broadcast(self, request: web.Request) -> web.Response:
        """Send a POSTed {"type", "data"}, or bytes, to all sockets, as a custom node's ``send_sync`` without a sid."""
        body = await request.read()
        if request.content_type == "application/octet-stream":
            self.sockets.send_bytes(body)
        else:
            message = json_codec.loads(body)
            self.sockets.send(str(message["type"]), message["data"], None)
        await self.sockets.drained()
        return reply({})

    async def _set_object_info(self, request: web.Request) -> web.Response:
        """POST the bytes that GET /object_info answers from now on; no bytes for the simulator's own answer."""
        self.catalogue.odd_answer = await request.read() or None
        return reply({})

    async def _set_models(self, request: web.Request) -> web.Response:
        """POST the list of the models that a folder has from now on: checkpoints, or loras."""
        self.catalogue.set_models(request.match_info["folder"], json_codec.loads(await request.read()))
        return reply({})

    async def _set_speed(self, request: web.Request) -> web.Response:
        """POST a number: how fast work is from now on, as with --speed."""
        speed = json_codec.loads(await request.read())
        if not isinstance(speed, (int, float)) or not 0 < speed < float("inf"):
            return reply({"error": "a speed is a number above 0"}, 400)
        self.options.speed = float(speed)
        return reply({})

    async def _get_recorded(self, _: web.Request) -> web.Response:
        """Return the recorded requests, so that a test can prove what they did not contain."""
        return reply(list(self._recorded))

    async def _set_faults(self, request: web.Request) -> web.Response:
        """POST {"fault": "slow:0.5"} switches one on, DELETE (or DELETE ?fault=slow) off."""
        if request.method == "DELETE":
            self.faults.switch_off(request.rel_url.query.get("fault"))
            return reply({})
        try:
            specification = str(json_codec.loads(await request.read())["fault"])
            self.faults.switch_on(specification)
        except (UnknownFault, json_codec.MalformedJson, KeyError, TypeError) as error:
            return reply({"error": str(error)}, 400)
        if specification.startswith("drop-socket"):
            self.sockets.drop()
        if (refusing := self.faults.take("refuse")) is not None:
            seconds = refusing.number if refusing.argument else 5.0
            asyncio.get_running_loop().call_later(0.05, self._start_refusing, seconds)
        return reply({})

    def _start_refusing(self, seconds: float) -> None:
        self._tasks.append(asyncio.create_task(self._refuse(seconds)))

    async def close(self) -> None:
        """Stop; queue and history are lost, as ComfyUI's are."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.faults.switch_off()
        await self.sockets.close()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._scratch is not None:
            self._scratch.cleanup()


def _context(options: SimulatorOptions) -> ssl.SSLContext | None:
    if options.tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=options.client_ca)
    context.load_cert_chain(*options.tls)
    if options.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


async def _record(request: web.Request) -> dict[str, Any]:
    """Return a request as it came, of bodies JSON alone, because others are streams that handlers read themselves."""
    body = await request.text() if request.content_type == "application/json" else ""
    headers = [[name, value] for name, value in request.headers.items()]
    return {"method": request.method, "path": request.path_qs, "headers": headers, "body": body}


def _bare_500() -> web.Response:
    return web.Response(status=500, text="500 Internal Server Error\n\nServer got itself in trouble")


def _foreign(request: web.Request) -> web.Response | None:
    """Refuse pages of other origins, as ComfyUI on loopback does (server.py, create_origin_only_middleware)."""
    if request.headers.get("Sec-Fetch-Site") == "cross-site":
        return web.Response(status=403)
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("Host", "").lower():
        return web.Response(status=403)
    return None


async def start(options: SimulatorOptions) -> Simulator:
    """Start a simulated ComfyUI in this event loop."""
    simulator = Simulator(options)
    await simulator.start()
    return simulator


def run(options: SimulatorOptions) -> int:
    """Run one until SIGTERM or SIGINT. Returns the exit code."""

    async def main() -> int:
        stop = asyncio.Event()
        for signal_ in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signal_, stop.set)
        try:
            simulator = await start(options)
        except OSError as error:
            print(f"can't listen on {options.host}:{options.port}: {error.strerror}", file=sys.stderr)
            return 1
        print(f"Simulated ComfyUI {catalogue.VERSION} listening on {simulator.url}", flush=True)
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({stopping, simulator.publishing}, return_when=asyncio.FIRST_COMPLETED)
        is_stopped = stopping.done()
        stopping.cancel()
        if not is_stopped:
            # As ComfyUI, end if messages can't be sent any more: a client_id that is no key of a dict does it.
            print(f"publish_loop ended: {simulator.publishing.exception()!r}", file=sys.stderr, flush=True)
        await simulator.close()
        return 0 if is_stopped else 1

    return asyncio.run(main())
