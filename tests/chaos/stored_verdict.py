"""What must be so at the end of a run with object storage, as far as it can be seen from outside."""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.artifacts.bucket_sweep import DAY, BucketSweep
from gateway.artifacts.object_store import ObjectStore
from gateway.files.index import FileIndex
from gateway.store.sqlite import SqliteStore
from tests.chaos.clients import Client
from tests.chaos.run import MAX_SHOWN
from tests.chaos.stores import ChaosStore
from tests.chaos.verdict import graph_in, seed_of
from tests.chaos.world import World
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, until
from tests.support.stored import rows

KEYS = {name: f"{name}-key-0123456789" for name in ("anna", "ben", "boss")}
BOSS = KEYS["boss"]
_SAFE = ("stored", "spooled")


@dataclass(frozen=True)
class Output:
    """A file of a job that succeeded."""

    tenant: str
    prompt_id: str
    seed: int
    image: Mapping[str, str]


class Verdict:
    """`settle`, then `look`.

    Attributes:
        read: outputs that their owner could read, each time.
        lost: outputs that nobody can read, because their backend died before they were copied.
        copies: attempts to copy since the gateway's last start before the end, by outcome.
        objects: objects in the end.
        unknown: objects that had no row before the sweep.
    """

    def __init__(self, lab: Lab, world: World, store: ChaosStore, tenants: Mapping[Client, str]) -> None:
        self.problems: list[str] = []
        self.read = self.objects = self.unknown = 0
        self.lost: set[str] = set()
        self.copies: Counter[str] = Counter()
        self._lab = lab
        self._world = world
        self._store = store
        self._clients = tenants
        self._all: list[Output] = []
        self._boss = Comfy(lab.http, world.url, X_API_Key=BOSS)
        # By seed, all whole files that backends ever had.
        self._made: dict[int, set[bytes]] = defaultdict(set)
        # For each destruction, the backend and the jobs whose files were safe by then.
        self._destroyed: list[tuple[str, frozenset[str]]] = []

    def note_destruction(self, number: int) -> None:
        """Note what a backend has, and what is copied, before its files are deleted."""
        self._note_files(number)
        safe = frozenset(row.prompt_id for row in rows(self._world.gateways[-1]) if row.state in _SAFE)
        self._destroyed.append((f"b{number + 1}", safe))

    def _note_files(self, number: int) -> None:
        for path in self._world.outputs(number).rglob("*.png"):
            if (graph := graph_in(path)) is not None:
                self._made[seed_of(graph)].add(path.read_bytes())

    # -- what is waited for --------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Wait until no job is open, and no file is to be copied."""

        async def nothing_open() -> bool:
            metrics = await self._metrics()
            return metrics["jobs_open"] == 0 and metrics["storage_pending"] == 0

        try:
            await until(nothing_open, 90, "no job is open, and no file is to be copied")
        except AssertionError as error:
            waiting = [row for row in rows(self._world.gateways[-1]) if row.state != "stored"]
            raise AssertionError(f"{error}: {await self._metrics()}, {waiting[:3]}") from error

    async def _metrics(self) -> dict[str, float]:
        async with self._lab.http.get(f"{self._world.url}/metrics", headers=self._boss.headers) as answer:
            text = await answer.text()
        found = re.findall(r"^comfyui_gateway_(\S+) (\S+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in found if "storage" in name or name == "jobs_open"}

    # -- what is looked at ---------------------------------------------------------------------------------------

    async def look(self, *, is_short: bool = False) -> None:
        """Look at all outputs: as it is, with all backends destroyed, and after another start. Then at the bucket."""
        metrics = await self._metrics()
        for name, value in metrics.items():
            if match := re.fullmatch(r'storage_copies_total{outcome="(\w+)"}', name):
                self.copies[match[1]] += int(value)
        outputs = [output for tenant in set(self._clients.values()) for output in await self._outputs(tenant)]
        self._all = outputs
        await self._accepted(outputs)
        for number in range(self._world.setup.backends):
            self._note_files(number)
        await self._read_all("at the end")
        self._world.before_destruction = lambda _: None
        await self._world.destroy_all()
        if not is_short:
            await self._read_all("without backends")
        await self._world.die(0.0)
        await self._read_all("after a start without backends")
        await self._world.gateways[-1].kill()
        await self._sweep()

    async def _read_all(self, when: str) -> None:
        self.read = sum([await self._is_read(output, when) for output in self._all])

    async def _outputs(self, tenant: str) -> list[Output]:
        comfy = Comfy(self._lab.http, self._world.url, X_API_Key=KEYS[tenant])
        history: dict[str, dict[str, Any]] = await comfy.get("/history", max_items="10000")
        found = []
        for prompt_id, entry in history.items():
            images = comfy.images(entry)
            if len(images) != (entry["status"]["status_str"] == "success"):
                self.problems.append(f"{prompt_id}: {len(images)} images")
            found += [Output(tenant, prompt_id, seed_of(entry["prompt"][2]), image) for image in images]
        return found

    async def _accepted(self, outputs: list[Output]) -> None:
        """Look for jobs that should have an output: that nobody cancelled, and that don't fail."""
        there = {output.prompt_id for output in outputs}
        for client in self._clients:
            for each in client.accepted:
                if not each.cancel_asked and not each.task.fails and each.prompt_id not in there:
                    self.problems.append(f"{each.prompt_id}: it was accepted, and has no output")

    async def _is_read(self, output: Output, when: str) -> bool:
        """Let everybody read an output. Return True if its owner can."""
        for name in (*KEYS, ""):
            if name in (output.tenant, "boss"):
                continue
            headers = {"X-API-Key": KEYS[name]} if name else {}
            status, data = await self._view(output, headers)
            # Another tenant may have a file of that name, too.
            has_own = any(each.tenant == name and each.image == output.image for each in self._all)
            if (status == 200 and not has_own) or data in self._made[output.seed]:
                self.problems.append(f"{output.prompt_id}: {when}, {name or 'somebody without a key'} can read it")
        status, data = await self._view(output, {"X-API-Key": KEYS[output.tenant]})
        if status == 200 and data in self._made[output.seed]:
            return True
        if status != 200 and self._may_be_lost(output.prompt_id):
            self.lost.add(output.prompt_id)
        else:
            known = "other bytes" if status == 200 else data[:200].decode(errors="replace")
            row = [(each.state, each.backend) for each in self._rows() if each.prompt_id == output.prompt_id]
            self.problems.append(f"{output.prompt_id}: {when}, /view of {output.image} is {status}, {known}; {row}")
        return False

    async def _view(self, output: Output, headers: Mapping[str, str]) -> tuple[int, bytes]:
        async with self._lab.http.get(f"{self._world.url}/view", params=output.image, headers=headers) as answer:
            return answer.status, await answer.read()

    def _rows(self) -> list[Any]:
        return rows(self._world.gateways[-1])

    def _may_be_lost(self, prompt_id: str) -> bool:
        """Return True if the backend that ran a job was destroyed before the job's file was copied or spooled."""
        ran_on = {
            line["backend"]
            for gateway in self._world.gateways
            for line in gateway.log_lines()
            if line["event"] == "job" and line["status"] == "done" and line["prompt_id"] == prompt_id
        }
        return any(backend in ran_on and prompt_id not in safe for backend, safe in self._destroyed)

    async def _sweep(self) -> None:
        """Compare the bucket with the journal: twice by the gateway's own sweep, two days later, then by ourselves."""
        store, journal = ObjectStore.of(self._store.settings()), SqliteStore(self._world.gateways[-1].data_dir)
        await journal.open()
        try:
            before = [key async for page in store.list() for key, _, _ in page]
            known = {key for row in self._rows() for key in (row.key, row.shared_key) if key}
            self.unknown = len(set(before) - known)
            sweep = BucketSweep(store, FileIndex(), journal, DAY)
            for _ in range(2):
                await sweep.sweep(time.time() + 2 * DAY)
            objects = {key async for page in store.list() for key, _, _ in page}
        finally:
            await journal.close()
        left = [row for row in self._rows() if row.state != "stored"]
        self.problems += [f"{row.prompt_id}: its row is {row.state} in the end" for row in left]
        wanted = {key for row in self._rows() for key in (row.key, row.shared_key) if key}
        self.problems += [f"{key}: an object without a row" for key in objects - wanted]
        self.problems += [f"{key}: a row without an object" for key in wanted - objects]
        self.objects = len(objects)

    def raise_problems(self) -> None:
        """Raise if anything is not as it must be.

        Raises:
            AssertionError: what is wrong.
        """
        shown = [*self.problems[:MAX_SHOWN], *(["…"] if len(self.problems) > MAX_SHOWN else [])]
        assert not shown, "\n  ".join([f"{len(self.problems)} problems", *shown])
