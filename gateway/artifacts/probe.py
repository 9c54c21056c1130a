"""Trial of a store with an object of the gateway's own: put, get, range, list, sign, delete."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass

import aiohttp

from gateway.artifacts.object_store import ObjectStore, StorageError

# If a gateway is killed in a trial, its object stays: a kilobyte, until a sweep of the bucket deletes it.
FOLDER = "probe"
_KEY = re.compile(rf"{FOLDER}/[0-9a-f]{{32}}")
_LINK_SECONDS = 60.0
_START_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a trial, and its failure. A `note` is no failure."""

    name: str
    error: StorageError | None = None
    note: str = ""


def is_trial(key: str) -> bool:
    """Return True if a key is that of an object of a trial."""
    return _KEY.fullmatch(key) is not None


async def try_store(store: ObjectStore) -> None:
    """Put, get, list and delete an object, within ten seconds.

    Raises:
        StorageError: the store can't be used now.
    """
    try:
        async with asyncio.timeout(_START_SECONDS):
            # Go on after a failure, because the last step deletes the object.
            errors = [step.error async for step in examine(store) if step.error is not None]
    except TimeoutError:
        sentence = f"the store at {store.place} did not answer within {_START_SECONDS:.0f} s; check it and the network"
        raise StorageError("unreachable", sentence) from None
    if errors:
        raise errors[0]


async def examine(store: ObjectStore, http: aiohttp.ClientSession | None = None) -> AsyncIterator[Step]:
    """Try a store, and yield each step.

    Args:
        store: the store.
        http: a client of signed URLs; None: don't try them.
    """
    key, content = f"{FOLDER}/{secrets.token_hex(16)}", secrets.token_bytes(1000)
    put = await _tried("put", _put(store, key, content))
    yield put
    if put.error is not None:
        return
    yield await _tried("get", _compare(store, key, 0, content))
    yield await _tried("range", _compare(store, key, 10, content[10:20]))
    yield await _tried("list", _find(store, key))
    if http is not None and store.can_sign:
        yield await _tried_link(store, key, content, http)
    yield await _tried("delete", store.delete([key]))


async def _put(store: ObjectStore, key: str, content: bytes) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield content

    await store.put(key, chunks(), content_type="application/octet-stream", disposition="attachment")


async def _compare(store: ObjectStore, key: str, start: int, content: bytes) -> None:
    found = b"".join([chunk async for chunk in store.get(key, start, start + len(content))])
    if found != content:
        raise StorageError("other", f"{store.place} returned other bytes than were written; is there a cache between?")


async def _find(store: ObjectStore, key: str) -> None:
    async for page in store.list(FOLDER):
        if any(found == key for found, *_ in page):
            return
    raise StorageError("other", f"{store.place} does not list an object that was just written")


async def _tried(name: str, call: Awaitable[None]) -> Step:
    try:
        await call
    except StorageError as error:
        return Step(name, error)
    return Step(name)


async def _tried_link(store: ObjectStore, key: str, content: bytes, http: aiohttp.ClientSession) -> Step:
    """Fetch a signed URL as a client does, and the same URL without its signature."""
    try:
        (url,) = await store.sign([key], _LINK_SECONDS)
    except StorageError as error:
        return Step("sign", error)
    address, _, _ = url.partition("?")
    origin = address.removesuffix(key)
    try:
        async with http.get(url, allow_redirects=False) as answer:
            if answer.status != 200 or not await _has(answer, content):
                return Step("sign", StorageError("denied", _refused(origin, answer.status)))
        async with http.get(address, allow_redirects=False) as answer:
            if answer.status == 200:
                sentence = f"{origin} gives objects to everybody without a signature; make the bucket private"
                return Step("sign", StorageError("other", sentence))
    except (aiohttp.ClientError, TimeoutError) as error:
        # Other errors may quote the URL, and so the signature.
        reason = str(error) if isinstance(error, aiohttp.ClientConnectorError) else type(error).__name__
        note = f"this machine can't reach {origin}, so the signed URL was not tried ({reason}); clients must reach it"
        return Step("sign", note=note)
    return Step("sign")


async def _has(answer: aiohttp.ClientResponse, content: bytes) -> bool:
    """Return True if the body is this, without reading more of it."""
    try:
        return await answer.content.readexactly(len(content)) == content and not await answer.content.read(1)
    except asyncio.IncompleteReadError:
        return False


def _refused(origin: str, status: int) -> str:
    return (
        f"the signed URL of an object at {origin} was answered with {status}; a proxy before the store must pass the "
        "Host header and the path on as they are, and storage.public_endpoint must be the address that clients use"
    )
