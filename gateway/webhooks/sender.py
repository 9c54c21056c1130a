"""Send one delivery to a URL that a tenant chose, and tell how it went. See `receivers.py` for what is refused.

Each attempt looks the host up, and uses a connection to one of the addresses that it has checked (`connections.py`).
No redirect is followed, no cookie kept, and no proxy and no credentials are taken from the environment. TLS is verified
for the host's name. The answer's status counts; of the rest little is read, and nothing is kept.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from time import monotonic

import aiohttp

from gateway.webhooks.connections import MAX_ANSWER, Client, Clients
from gateway.webhooks.lookups import NoThread
from gateway.webhooks.receivers import NoAddress, Receiver, Receivers, Refused

# Seconds in which an answer's body is read, at most `MAX_ANSWER` of it. It changes nothing: the status is known.
ANSWER_SECONDS = 0.5
MAX_RETRY_AFTER = 86_400.0
_SECONDS = re.compile(r"[0-9]{1,9}")
_HEADERS = {
    "Content-Type": "application/json",
    "User-Agent": "comfyui-gateway-webhooks",
    "Accept": "*/*",
    "Accept-Encoding": "identity",
}


class Failure(StrEnum):
    """Reason of a failed attempt, for the operator. NONE: an HTTP answer came, and its status decides.

    BUSY: the gateway could not make the attempt now, which is no fault of the receiver.
    """

    NONE = ""
    BUSY = "busy"
    REFUSED_ADDRESS = "refused_address"
    NO_ADDRESS = "no_address"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    PROTOCOL = "protocol"
    REDIRECT = "redirect"


# Shown in place of a reason that would tell of the operator's network.
UNREACHABLE = "unreachable"
_SHOWN_ALWAYS = frozenset({Failure.NONE, Failure.REDIRECT})
_HIDDEN_ALWAYS = frozenset({Failure.BUSY, Failure.REFUSED_ADDRESS, Failure.NO_ADDRESS})


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of one attempt.

    Args:
        status: the HTTP status; None without an answer.
        seconds: time until the answer's head, or until the failure.
        retry_after: seconds that the receiver asks to wait.
        error: the reason of a failure, for the operator.
        is_inner: the receiver is in `allow_networks`, or may be.
        detail: a sentence about the failure for the operator's log. It may name addresses.
    """

    status: int | None
    seconds: float
    retry_after: float | None = None
    error: Failure = Failure.NONE
    is_inner: bool = False
    detail: str = field(default="", repr=False)

    def shown(self) -> str:
        """Return the reason to show to a tenant.

        No tenant may map the operator's network by its webhooks: open and closed ports, names and addresses there look
        alike. With "unreachable" `seconds` must not be shown either, because a closed port fails sooner.
        """
        if self.error in _SHOWN_ALWAYS:
            return self.error.value
        return UNREACHABLE if self.is_inner or self.error in _HIDDEN_ALWAYS else self.error.value


class Sender:
    """Sender of deliveries. The caller bounds how many are on their way.

    Args:
        receivers: finds the addresses of each attempt.
        timeout: limit for an attempt in seconds, lookup included.
        connect_timeout: limit for one connection, TLS included.
        tls: the context for https; None: the system's authorities.
    """

    def __init__(
        self,
        receivers: Receivers,
        timeout: float = 20.0,
        connect_timeout: float = 5.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._receivers = receivers
        self._timeout = timeout
        self._clients = Clients(tls or ssl.create_default_context(), connect_timeout)

    async def close(self) -> None:
        """Close the connections that wait for another delivery."""
        await self._clients.close()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, tenant: str = "") -> Outcome:
        """Make one attempt for a tenant.

        Whatever the receiver does, this raises nothing, and takes little more than the timeout.
        """
        started = monotonic()
        deadline = asyncio.get_running_loop().time() + self._timeout
        receiver: Receiver | None = None

        def failed(error: Failure, detail: str) -> Outcome:
            is_inner = receiver is not None and receiver.is_inner
            return Outcome(None, monotonic() - started, error=error, is_inner=is_inner, detail=detail)

        try:
            async with asyncio.timeout_at(deadline):
                receiver = await self._receivers.find(url, tenant)
                sent = {**_HEADERS, **headers}
                client, answer = await self._ask(receiver, tenant, sent, body)
            seconds = monotonic() - started
            await self._end(client, answer)
            return Outcome(
                answer.status,
                seconds,
                retry_after(answer.headers.get("Retry-After", ""), datetime.now(UTC)),
                Failure.REDIRECT if 300 <= answer.status < 400 else Failure.NONE,
                receiver.is_inner,
            )
        except NoThread as error:
            return failed(Failure.BUSY, str(error))
        except Refused as error:
            return failed(Failure.REFUSED_ADDRESS, str(error))
        except NoAddress as error:
            return failed(Failure.NO_ADDRESS, str(error))
        except TimeoutError:
            # Without a receiver the lookup took too long, so the name may be an inner one.
            if receiver is None:
                return failed(Failure.NO_ADDRESS, "the host's lookup took too long")
            return failed(Failure.TIMEOUT, "no answer in time")
        except aiohttp.ClientSSLError as error:
            return failed(Failure.TLS, _reason(error))
        except aiohttp.ClientConnectorError as error:
            return failed(Failure.CONNECT, _reason(error))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return failed(Failure.PROTOCOL, type(error).__name__)

    async def _ask(
        self, receiver: Receiver, tenant: str, headers: dict[str, str], body: bytes
    ) -> tuple[Client, aiohttp.ClientResponse]:
        """Send the request to a receiver's addresses, and read the answer's head.

        Raises:
            aiohttp.ClientError, OSError, ValueError: no answer came, or none that is HTTP.
        """
        client = self._clients.take(receiver, tenant)
        if client.is_used:
            try:
                return client, await _post(client, receiver, headers, body)
            except (aiohttp.ClientConnectorError, TimeoutError):
                raise
            except (aiohttp.ClientError, OSError, ValueError):
                # If the receiver has closed a connection that was idle, or spoils it, ask once more by a new one.
                client = self._clients.take(receiver, tenant, anew=True)
        return client, await _post(client, receiver, headers, body)

    async def _end(self, client: Client, answer: aiohttp.ClientResponse) -> None:
        """Read a little of an answer's body, and keep the connection if that was all of it."""
        is_kept = False
        try:
            is_kept = await _drain(answer)
        finally:
            if is_kept:
                await self._clients.give_back(client)
            else:
                await client.close()


async def _post(client: Client, receiver: Receiver, headers: dict[str, str], body: bytes) -> aiohttp.ClientResponse:
    """Send a request. Close the client if no answer comes."""
    answer: aiohttp.ClientResponse | None = None
    try:
        answer = await client.post(receiver.url, headers, body)
        return answer
    finally:
        if answer is None:
            await client.close()


async def _drain(answer: aiohttp.ClientResponse) -> bool:
    """Read a little of an answer's body, so that a well-behaved receiver sees no reset.

    Return True if that was all, and the connection may be used again.
    """
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            count = 0
            while count < MAX_ANSWER and (piece := await answer.content.readany()):
                count += len(piece)
        return answer.content.at_eof()
    except (TimeoutError, aiohttp.ClientError, OSError, ValueError):
        # The status has come, and it decides.
        return False
    finally:
        answer.close()


def retry_after(text: str, now: datetime) -> float | None:
    """Return the seconds of a Retry-After header (RFC 9110), at most a day; None if it can't be read."""
    text = text.strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), MAX_RETRY_AFTER)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return min(max((date - now).total_seconds(), 0.0), MAX_RETRY_AFTER)


def _reason(error: aiohttp.ClientConnectorError) -> str:
    """Return a short reason for the operator, without what the receiver sent."""
    cause = error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        # The rest names the host, which is part of the URL.
        return f"certificate: {cause.verify_message.partition(',')[0]}"
    if isinstance(cause, ssl.SSLError):
        return str(cause.reason or "TLS")
    return str(getattr(cause, "strerror", None) or type(cause).__name__)
