"""Sizes of outputs: by their copies in object storage, or by the ETag that the gateway knows.

Else the backend that has the file is asked once. Copies tell hashes, too, and may have signed links.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace

from gateway.comfy.client import BackendError
from gateway.comfy.file_refs import FileRef, view_path
from gateway.files.index import Holder, Upload
from gateway.files.values import stored_of_place
from gateway.fleet.fleet import Fleet
from gateway.jobs.engine import Engine
from gateway.jobs.files.entry_links import MAX_LINKED
from gateway.telemetry.tasks import Tasks
from gateway.web.v2.model import SizedOutput
from gateway.web.v2.outputs import Output

# Sizes that are remembered, of all tenants together.
MAX_KNOWN = 50_000
# Files of a job that are asked for, and how many at a time, of all jobs.
MAX_ASKED, AT_A_TIME = 500, 16
# Outputs that are looked at before others have their turn.
AT_ONCE = 500
# Seconds for one question, and for all of a job. If they are over, the size is told as 0, and asked for again later.
SECONDS, ALL_SECONDS = 2.0, 4.0
_Key = tuple[str, str, FileRef]


class Sizes:
    """Sizes of outputs. A size that no ETag tells is asked for once."""

    def __init__(self, engine: Engine, fleet: Fleet) -> None:
        self._engine = engine
        self._fleet = fleet
        self._known: OrderedDict[_Key, int] = OrderedDict()
        self._asking: dict[_Key, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(AT_A_TIME)
        self._tasks = Tasks("v2_sizes")

    async def close(self) -> None:
        """Stop asking."""
        await self._tasks.close()

    def known(self, tenant: str, prompt_id: str, output: Output) -> int | None:
        """Return the size of an output; None if it is not known yet."""
        if output.ref is None:
            return len(output.text.encode("utf-8", "replace"))
        found = self._engine.files.find(tenant, output.ref)
        if isinstance(found, Upload):
            return found.size
        size = self._engine.outputs.size_of(tenant, output.ref)
        return self._known.get((tenant, prompt_id, output.ref)) if size is None else size

    async def of(
        self, tenant: str, prompt_id: str, outputs: Iterable[Output], seconds: float = ALL_SECONDS
    ) -> list[SizedOutput]:
        """Return the outputs of an ended job with their sizes; 0 for a size that nobody tells in time."""
        outputs, asked = list(outputs), list[asyncio.Task[None]]()
        for start in range(0, len(outputs), AT_ONCE):
            asked += self.ask(tenant, prompt_id, outputs[start : start + AT_ONCE], MAX_ASKED - len(asked))
            await asyncio.sleep(0)
        if asked:
            await asyncio.wait(asked, timeout=seconds)
        sized: list[SizedOutput] = []
        for start in range(0, len(outputs), AT_ONCE):
            some = outputs[start : start + AT_ONCE]
            sized += [self._sized(tenant, each, self.known(tenant, prompt_id, each) or 0) for each in some]
            await asyncio.sleep(0)
        return sized

    def _sized(self, tenant: str, output: Output, size: int) -> SizedOutput:
        if output.ref is None:
            return SizedOutput(output, size)
        stored = stored_of_place(self._engine.files.find(tenant, output.ref))
        return SizedOutput(output, size, "" if stored is None else stored.digest)

    async def linked(self, tenant: str, outputs: list[SizedOutput]) -> list[SizedOutput]:
        """Return outputs with signed links, if readers get such links: `MAX_LINKED` of a job."""
        links, files = self._engine.entry_links, [each for each in outputs if each.output.ref is not None]
        if links is None or not files:
            return outputs
        files = files[:MAX_LINKED]
        found = await links.links_to(tenant, [each.output.ref for each in files if each.output.ref is not None])
        by_id = {each.output.id: link for each, link in zip(files, found, strict=True)}
        return [replace(each, link=by_id.get(each.output.id)) for each in outputs]

    def so_far(self, tenant: str, prompt_id: str, outputs: Iterable[Output]) -> list[SizedOutput]:
        """Return those outputs of a running job whose sizes are known, and ask for the other sizes."""
        outputs = list(outputs)
        self.ask(tenant, prompt_id, outputs)
        sizes = ((each, self.known(tenant, prompt_id, each)) for each in outputs)
        return [self._sized(tenant, each, size) for each, size in sizes if size is not None]

    def ask(
        self, tenant: str, prompt_id: str, outputs: Iterable[Output], maximum: int = MAX_ASKED
    ) -> list[asyncio.Task[None]]:
        """Ask for sizes that are not known, `maximum` at most. Return the questions that are under way."""
        asked: list[asyncio.Task[None]] = []
        for output in outputs:
            if output.ref is None or len(asked) >= maximum or self.known(tenant, prompt_id, output) is not None:
                continue
            key = (tenant, prompt_id, output.ref)
            found = self._engine.files.find(tenant, output.ref)
            if key not in self._asking and isinstance(found, Holder):
                task = self._asking[key] = self._tasks.start(self._ask(key, found), prompt_id)
                task.add_done_callback(lambda _, key=key: self._asking.pop(key, None))  # type: ignore[misc]
            if key in self._asking:
                asked.append(self._asking[key])
        return asked

    async def _ask(self, key: _Key, holder: Holder) -> None:
        backend = self._fleet.backends.get(holder.backend)
        if backend is None or not backend.pulse.alive:
            return
        try:
            head = backend.client.open("HEAD", view_path(holder.there))
            async with self._places, asyncio.timeout(SECONDS), head as found:
                length = found.headers.get("Content-Length", "") if found.status == 200 else ""
        except (BackendError, TimeoutError):
            return
        if length.isascii() and length.isdigit() and len(length) < 16:
            self._known[key] = int(length)
            while len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
