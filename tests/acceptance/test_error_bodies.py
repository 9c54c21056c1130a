"""Each refusal says what is wrong, with what, and what to do: no route answers 400 or more with an empty body."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from gateway.web.app import COMFYUI, JOBS, OWN
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab
from tests.support.security_world import Seen, ask, caller, start

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
FORM = "multipart/form-data; boundary=xx"
PART = b'--xx\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\nbytes'
BODIES: dict[str, tuple[str, bytes]] = {
    "no body": ("", b""),
    "no JSON": ("application/json", b"{"),
    "a list": ("application/json", b"[1]"),
    "nothing": ("application/json", b"null"),
    "too deep": ("application/json", b"[" * 2000),
    "a charset": ("application/json; charset=klingon", b"{}"),
    "plain text": ("text/plain", b"hello"),
    "a form": ("application/x-www-form-urlencoded", b"image=a"),
    "no boundary": ("multipart/form-data", PART),
    "another boundary": ("multipart/form-data; boundary=yy", PART),
    "no end": (FORM, PART),
    "no headers": (FORM, b"--xx\r\nnonsense\r\n\r\nx\r\n--xx--\r\n"),
    "no file": (FORM, b'--xx\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n--xx--\r\n'),
    "mixed": ("multipart/mixed; boundary=xx", PART + b"\r\n--xx--\r\n"),
}
# ComfyUI says these in plain text (app/user_manager.py).
IN_WORDS = {b"Directory not provided", b"Invalid directory", b"Directory not found"}


# What a backend answers there is passed on byte for byte.
HANDED_ON = {"/experiment/models/preview/none", "/view_metadata/none"}


FOR_ADMINS = {"/free", "/gateway/keys", "/gateway/keys/none/rotate"}


def fault(seen: Seen, method: str = "GET") -> str | None:
    """What is missing in a refusal; None if it says all."""
    if seen.status < 400 or method == "HEAD" or seen.body in IN_WORDS or b"<title>Sign in" in seen.body:
        return None
    if "application/json" not in dict(seen.headers).get("content-type", ""):
        return f"{seen.status}: no JSON: {seen.body[:100]!r}"
    error = json.loads(seen.body).get("error")
    if isinstance(error, str):
        # ComfyUI's form on the routes of jobs (comfy_execution/jobs.py).
        return None if error else "an empty error"
    told = [error.get(key) for key in ("type", "message", "details")]
    return None if all(isinstance(text, str) and text for text in told) else f"{seen.status}: {error}"


def paths(routes: Iterable[tuple[str, str, Any]] = OWN + JOBS + COMFYUI) -> Iterator[tuple[str, str]]:
    """Each route, with something in place of its names."""
    for method, path, _ in routes:
        for name in ("{name}", "{node_class}", "{folder}", "{kind}", "{id}", "{file}", "{dest}", "{path:.*}"):
            path = path.replace(name, "none")
        path = path.replace("{action:drain|resume}", "drain").replace("{id:(?!deliveries$)[^/]+}", "none")
        yield method, path.replace("{prompt_id}", "none").replace("{job_id}", "none")


async def sent(comfy: Comfy, method: str, path: str, type_: str, body: bytes, **headers: str) -> Seen:
    """One request with a body."""
    more = {"Content_Type": type_} if type_ else {}
    return await ask(comfy, method, path, body, **more, **headers)


async def test_no_refusal_is_empty(lab: Lab) -> None:
    """Every route, by every kind of caller, with bodies of every kind that it does not take."""
    simulator = await lab.simulator()
    gateway = await start(lab, simulator)
    found: list[Any] = []
    for name in ("anna", "boss", "", "wrong"):
        comfy = caller(lab, gateway, name) if name != "wrong" else Comfy(lab.http, gateway.url, X_API_Key="wrong")
        for method, path in sorted(set(paths())):
            is_tried = method == "POST" and (name == "anna" or (name == "boss" and path in FOR_ADMINS))
            bodies = BODIES if is_tried else {"no body": ("", b"")}
            if name == "boss" and path.removeprefix("/v2").startswith(("/userdata", "/settings", "/users")):
                # An admin's are the backend's to answer.
                continue
            for kind, (type_, body) in bodies.items():
                seen = await sent(comfy, method, path, type_, body)
                if path in HANDED_ON and seen.status == 404:
                    assert seen.body == (await ask(Comfy(lab.http, simulator.url), method, path)).body
                    continue
                found += [(name, method, path, kind, told)] if (told := fault(seen)) else []
    assert not found, found


async def test_methods_that_a_route_does_not_have(lab: Lab) -> None:
    """The gateway's own say in Allow which they have. What ComfyUI's routes do not have is the backend's to refuse."""
    simulator = await lab.simulator()
    gateway = await start(lab, simulator)
    boss, direct = caller(lab, gateway, "boss"), Comfy(lab.http, simulator.url)
    known: dict[str, set[str]] = {}
    for method, path in paths():
        known.setdefault(path, set()).add(method)
    own = {path for _, path in paths(OWN)}
    for path, methods in known.items():
        for method in {*METHODS, "PROPFIND", "OPTIONS"} - methods:
            seen = await ask(boss, method, path)
            if path in own or method not in METHODS:
                assert seen.status == 405, (method, path, seen)
                assert fault(seen) is None, (method, path, seen)
                allowed = set(dict(seen.headers)["allow"].split(", "))
                assert method not in allowed
                assert path not in own or method not in METHODS or allowed - {"HEAD"} == methods, (path, allowed)
            elif fault(seen) is not None:
                answered = await ask(direct, method, path)
                assert (seen.status, seen.body) == (answered.status, answered.body), (method, path)


# What is refused before a route is found, or by none; in each, "Host: x" stands for what every request has.
ODD: tuple[tuple[bytes, int], ...] = (
    (b"nonsense\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: x\r\n: no name\r\n\r\n", 400),
    (b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"a" * 10_000), 414),
    (b"GET / HTTP/1.1\r\nHost: x\r\nA: %s\r\n\r\n" % (b"a" * 20_000), 431),
    (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    (b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    (b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", 400),
    (b"POST /prompt HTTP/1.1\r\nHost: x\r\nExpect: a cake\r\nContent-Length: 2\r\n\r\n", 417),
    (b"POST /prompt HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", 400),
    (b"POST /prompt HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
    (b"POST /prompt HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
    (b"GET / HTTP/3.0\r\nHost: x\r\n\r\n", 400),
    (b"GET /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
    (b"OPTIONS /prompt HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    (b"POST /prompt HTTP/1.1\r\nHost: x\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\n{}", 415),
    (b"POST /prompt HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b", 400),
    (b"POST /upload/image HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n", 413),
)


async def answered(port: int, request: bytes) -> tuple[int, bytes, bytes]:
    """The status, head and body of the answer to some bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            assert length is not None, head
            return int(head.split()[1]), head, await reader.readexactly(int(length[1]))
    finally:
        writer.close()


async def test_what_no_route_answers(lab: Lab) -> None:
    gateway = await lab.gateway(await lab.simulator())
    found = []
    for request, expected in ODD:
        status, head, body = await answered(gateway.port, request)
        headers = (("content-type", "application/json"),) if b"application/json" in head else ()
        missing = fault(Seen(status, headers, body))
        missing = missing or (None if b"X-Request-Id: " in head else "no id")
        found += [(request[:80], status, missing)] if missing or status != expected else []
    assert not found, found
