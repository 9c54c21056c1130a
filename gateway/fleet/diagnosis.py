"""Find out why an address does not answer as a ComfyUI: wrong scheme, wrong path, another program, a gateway."""

from __future__ import annotations

import ssl
from urllib.parse import urlsplit

import aiohttp

from gateway.comfy import json_codec
from gateway.comfy.client import Access, Answer, BackendError, BadAnswer, ComfyClient, Refused, TimedOut, Unreachable

IS_GATEWAY = "this is a comfyui-gateway, not a ComfyUI; give the addresses of the ComfyUIs behind it"
REFUSED = "connection refused: no program listens there"
MAX_BODY = 2**16


async def reason_of(client: ComfyClient, session: aiohttp.ClientSession, error: BackendError, limit: float) -> str:
    """Return the cause of an error of `GET /queue`, with the remedy. It may ask the address a few things more.

    Credentials are not sent with these questions, because the address may be a wrong one.

    Args:
        client: calls to the address.
        session: connections for the questions.
        error: the error of the call.
        limit: seconds for each question.
    """
    url = urlsplit(client.base)
    if isinstance(error, Refused):
        return REFUSED
    if isinstance(error, TimedOut):
        return str(error)
    if url.scheme == "https" and isinstance(error, Unreachable):
        is_plain = "TLS" in str(error) and await _ask(f"http://{url.netloc}", session, "/", limit) is not None
        return f"it speaks http, not https: try http://{url.netloc}{url.path}" if is_plain else str(error)
    if isinstance(error, Unreachable):
        return str(error)
    may_be_tls = url.scheme == "http" and (not isinstance(error, BadAnswer) or error.status == 400)
    if may_be_tls and await _ask(f"https://{url.netloc}", session, "/", limit) is not None:
        return f"it speaks https, not http: try https://{url.netloc}{url.path}"
    if not isinstance(error, BadAnswer):
        return f"{error}: this is no ComfyUI, or it is ending"
    origin = f"{url.scheme}://{url.netloc}"
    if await is_gateway(origin, session, limit):
        return IS_GATEWAY
    if error.status in (401, 403, 407):
        return f"{error}: it asks for a password or a key; give it as backends[].auth"
    if 300 <= error.status < 400:
        return f"{error}: it redirects; give the URL that it leads to"
    if url.path and _is_queue(await _ask(origin, session, "/queue", limit)):
        return f"{error}: there is a ComfyUI without the path {url.path}; try {origin}"
    behind = f" under the path {url.path}" if url.path else ""
    return f"{error}: no ComfyUI answers there{behind}"


async def is_gateway(origin: str, session: aiohttp.ClientSession, limit: float) -> bool:
    """Return True if the address is a gateway's: it says how many of its backends are up."""
    answer = await _ask(origin, session, "/readyz", limit)
    try:
        value = json_codec.loads(answer.body) if answer is not None else None
    except json_codec.MalformedJson:
        return False
    return isinstance(value, dict) and {"backends_up", "journal"} <= value.keys()


def _is_queue(answer: Answer | None) -> bool:
    try:
        value = json_codec.loads(answer.body) if answer is not None and answer.status == 200 else None
    except json_codec.MalformedJson:
        return False
    return isinstance(value, dict) and "queue_running" in value


async def _ask(base: str, session: aiohttp.ClientSession, path: str, limit: float) -> Answer | None:
    """Return the answer of an address, of any server; None if there is none, or no HTTP."""
    # Nothing secret is sent, so whoever answers may.
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    client = ComfyClient(base, session, limit, limit, Access(tls=trusting))
    try:
        return await client.call("GET", path, maximum=MAX_BODY)
    except BadAnswer as error:
        return Answer(error.status, {}, b"")  # type: ignore[arg-type]
    except BackendError:
        return None
