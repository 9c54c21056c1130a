"""Tell the operator of packs that wait for trust: in the log at the start, and when the catalogue changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.catalogue.catalogue import Catalogue
from gateway.catalogue.packs import Pack, line_to_paste, log_fields, packs_of, untrusted
from gateway.comfy.node_review import review
from gateway.telemetry import logs
from gateway.telemetry.tasks import Tasks
from gateway.tenants.policy import Policies

_log = logs.get("packs")

LOOK_SECONDS = 2.0


class PackWatch:
    """The packs of the backends that tenants share.

    Args:
        is_needed: returns True if some tenant is kept from classes that are not trusted.
    """

    def __init__(self, catalogue: Catalogue, policies: Policies, is_needed: Callable[[], bool]) -> None:
        self._catalogue = catalogue
        self._policies = policies
        self._is_needed = is_needed
        self._tasks = Tasks("packs")
        self._seen: object = None
        self._logged = ""

    def start(self) -> None:
        """Begin to look for changes of the catalogue."""
        self._tasks.repeat(self._look, "watch", LOOK_SECONDS, at_once=False)

    async def close(self) -> None:
        """Stop looking."""
        await self._tasks.close()

    async def packs(self) -> list[Pack]:
        """Return the packs of all backends that are not dedicated to tenants: only there trust is asked for."""
        names = [backend.name for backend in self._catalogue.fleet.configured if not backend.tenants]
        infos = {name: info for name in names if (info := self._catalogue.info(name))}
        return await asyncio.to_thread(packs_of, infos, self._policies.default.trusts, review())

    async def _look(self) -> None:
        mark = self._catalogue.mark
        if mark is None or mark is self._seen or not self._is_needed():
            return
        self._seen, found = mark, untrusted(await self.packs())
        line = line_to_paste(found, self._policies.trust)
        if found and line != self._logged:
            self._logged = line
            _log.warning("packs_untrusted", **log_fields(found, self._policies.trust))
