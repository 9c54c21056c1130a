"""Errors of calls to a ComfyUI: they tell whose fault it is, and if anything was sent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp


class BackendError(Exception):
    """Failure of a call to a backend."""


class Unreachable(BackendError):
    """No connection was made, so nothing was sent."""


class Refused(Unreachable):
    """The connection was refused: no process listens there."""


class Unanswered(BackendError):
    """Something was sent and no whole answer came back: it may have been carried out."""


class TimedOut(Unanswered):
    """No answer within the time limit, while the connection stands: slow, which is not dead."""


class BadAnswer(BackendError):
    """An answer came that a ComfyUI does not give. `status` is its HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class UnreadableEntry(BadAnswer):
    """The history entry of a prompt is too large, or not of ComfyUI's form; the text says why.

    Attributes:
        is_final: True if it will be no other the next time.
    """

    def __init__(self, message: str, *, is_final: bool) -> None:
        super().__init__(message, 200)
        self.is_final = is_final


class Redirected(aiohttp.ClientError):
    """A redirect as the answer to a handshake. Its target must not get the headers that are for the backend."""


@asynccontextmanager
async def translated_errors() -> AsyncIterator[None]:
    """Turn aiohttp's errors into ours."""
    try:
        yield
    except (aiohttp.ClientError, OSError) as error:
        raise translated(error) from error


def translated(error: Exception) -> BackendError:
    """Return our error for one of aiohttp's: it tells if anything was sent. TimeoutError is an OSError.

    Aiohttp's text is not repeated where it may hold the backend's address, because users may see our error.
    """
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = getattr(error.certificate_error, "verify_message", "") or "it is not the host's"
        return Unreachable(f"its certificate is not trusted: {reason}")
    if isinstance(error, aiohttp.ClientSSLError):
        return Unreachable("it does not speak TLS as it is expected to")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Unreachable(f"its host name can't be looked up: {error.os_error.strerror or 'not known'}")
    if isinstance(error, aiohttp.ClientConnectorError):
        refused = isinstance(error.os_error, ConnectionRefusedError)
        return Refused("connection refused") if refused else Unreachable(error.os_error.strerror or "no connection")
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return Unreachable("no connection within the time limit")
    if isinstance(error, TimeoutError):
        return TimedOut("no answer within the time limit")
    if isinstance(error, aiohttp.WSServerHandshakeError):
        return BadAnswer(f"/ws answered {error.status}", error.status)
    if isinstance(error, OSError) and error.strerror:
        return Unanswered(f"the connection broke: {error.strerror}")
    return Unanswered(f"the connection broke: {_PLAIN.get(type(error), type(error).__name__)}")


_PLAIN: dict[type[Exception], str] = {
    aiohttp.ServerDisconnectedError: "it was closed",
    aiohttp.ClientPayloadError: "the answer ended early",
    aiohttp.ClientResponseError: "the answer is not HTTP",
    Redirected: "it redirects",
}
