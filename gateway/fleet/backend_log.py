"""Log lines about backends: a new state, and the reason for which one can't be used, each once."""

from __future__ import annotations

import aiohttp

from gateway.comfy.client import BackendError, BadAnswer, Refused
from gateway.fleet.backend import Backend
from gateway.fleet.diagnosis import IS_GATEWAY, REFUSED, is_gateway, reason_of
from gateway.fleet.health import Health
from gateway.telemetry import logs

_log = logs.get("fleet")


class BackendLog:
    """Log of the backends' states, which says nothing again with every probe.

    Args:
        session: connections for the questions that find a reason.
        limit: seconds for each question.
    """

    def __init__(self, session: aiohttp.ClientSession, limit: float) -> None:
        self._session = session
        self._limit = limit
        self._failures: dict[str, str] = {}
        self._states: dict[str, Health] = {}
        self._reasons: dict[str, str] = {}
        self._socket_failures: dict[str, str] = {}
        self._looked_at: set[str] = set()

    async def explain(self, backend: Backend, was: Health, failure: BackendError | None) -> str:
        """Return why a probe failed; empty if it did not. A failure that repeats itself is looked into once."""
        if failure is None:
            self._failures.pop(backend.name, None)
            return ""
        if self._failures.get(backend.name) == str(failure):
            return self._reasons.get(backend.name, "")
        self._failures[backend.name] = str(failure)
        if was in (Health.UP, Health.SLOW) and not isinstance(failure, BadAnswer):
            # It was a ComfyUI a moment ago, so its address is right.
            return REFUSED if isinstance(failure, Refused) else str(failure)
        return await reason_of(backend.client, self._session, failure, self._limit)

    def tell(self, backend: Backend, now: Health, reason: str = "", *, slow: bool = False) -> None:
        """Log a state that is not the one that was told last, or a new reason for it."""
        was = self._states.get(backend.name, Health.STARTING)
        is_new = bool(reason) and self._reasons.get(backend.name) != reason
        self._states[backend.name], self._reasons[backend.name] = now, reason
        if now is was and not is_new:
            return
        if now is Health.UP and not reason:
            _log.info("backend_changed", backend=backend.name, state=str(now), was=str(was))
            return
        log = _log.info if slow and now is Health.SLOW else _log.warning
        log(
            "backend_changed",
            backend=backend.name,
            state=str(now),
            was=str(was),
            reason=reason,
            url=f"{backend.url}/queue",
        )

    def socket_failed(self, backend: Backend, error: BackendError) -> None:
        """Log why a socket can't be opened, until it is opened."""
        if self._socket_failures.get(backend.name) != str(error):
            self._socket_failures[backend.name] = str(error)
            _log.warning("socket_failed", backend=backend.name, reason=str(error), url=f"{backend.url}/ws")

    async def connected(self, backend: Backend) -> None:
        """Warn of a backend that answers as ComfyUI does and is a gateway, when it is connected for the first time."""
        self._socket_failures.pop(backend.name, None)
        if backend.name in self._looked_at:
            return
        self._looked_at.add(backend.name)
        if await is_gateway(backend.url, self._session, self._limit):
            url = f"{backend.url}/readyz"
            _log.warning("backend_changed", backend=backend.name, state=str(backend.health), reason=IS_GATEWAY, url=url)
