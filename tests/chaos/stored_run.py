"""One seed with object storage: the store fails, too, backends are destroyed, and each output must be there."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.clients import Client
from tests.chaos.run import failed
from tests.chaos.stored_plan import StoredPlan
from tests.chaos.stored_verdict import BOSS, KEYS, Verdict
from tests.chaos.stores import ChaosStore, MakeStore
from tests.chaos.world import Setup, World
from tests.support.lab import Lab, until
from tests.support.stored import rows
from tests.support.tenancy import with_trust

# Of so many files of a short run one is as it is to be, or none will be.
MANY = 12


@dataclass(frozen=True)
class StoredFigures:
    """What a run was like."""

    plan: StoredPlan
    seconds: float
    outputs: int
    lost: int
    copies: Counter[str]
    objects: int
    unknown: int
    deaths: int

    def __str__(self) -> str:
        copies = ", ".join(f"{count:.0f} {outcome}" for outcome, count in sorted(self.copies.items()) if count)
        return (
            f"seed {self.plan.base.seed} ({self.plan.when}, spool {self.plan.max_spool}): {self.outputs} outputs read, "
            f"{self.lost} lost with their backend; copies since the last start: {copies}; {self.objects} objects, "
            f"{self.unknown} without a row before the sweep; {len(self.plan.base.faults())} faults and "
            f"{len(self.plan.store)} of the store, gateway killed {self.deaths} times, {self.seconds:.1f} s"
        )


async def run(planned: StoredPlan, directory: Path, make_store: MakeStore, *, is_short: bool = False) -> StoredFigures:
    """Run a plan. In a short one clocks go right, and the store and the gateway die when there is something to lose.

    Raises:
        AssertionError: what is not as it must be, and how to see it again.
    """
    began, lab = time.monotonic(), Lab(directory)
    config = directory / "gateway.yaml"
    keys = [{"name": name, "key": key, "role": "admin" if key == BOSS else "user"} for name, key in KEYS.items()]
    config.write_text(json.dumps({"auth": {"keys": keys, "metrics": "key"}, "tenants": with_trust({})}))
    try:
        async with make_store(lab, planned.base.seed) as store:
            settings = store.variables(
                when=planned.when,
                max_wait=0.5,
                max_spool=planned.max_spool,
                max_concurrency=4,
                strip_metadata=str(planned.strips).lower(),
            )
            setup = Setup(
                len(planned.base.lanes),
                ("--config", str(config)),
                settings | ({"probe__interval": 0.1} if is_short else {}),
                not is_short,
            )
            world = World(lab, directory, planned.base.seed, setup)
            try:
                return await _run(planned, lab, world, store, began)
            finally:
                await world.close()
    except BaseException as error:
        command = f"make chaos ARGS=--storage SEED={planned.base.seed}"
        raise failed(command, planned.text(), error, lab) from error
    finally:
        await lab.close()


async def _run(planned: StoredPlan, lab: Lab, world: World, store: ChaosStore, began: float) -> StoredFigures:
    await store.start()
    await world.start()
    tenants = [name for name, key in KEYS.items() if key != BOSS]
    clients = {
        Client(each, world.url, **{"X-API-Key": KEYS[tenant]}): tenant
        for number, each in enumerate(planned.base.clients)
        for tenant in [tenants[number % len(tenants)]]
    }
    verdict = Verdict(lab, world, store, clients)
    world.before_destruction = verdict.note_destruction
    listening = [asyncio.create_task(client.listen()) for client in clients]
    try:
        async with asyncio.TaskGroup() as group:
            for number, faults in enumerate(planned.base.lanes):
                group.create_task(world.suffer(number, faults))
            group.create_task(world.die_now_and_then(planned.base.kills))
            group.create_task(world.be_disturbed(planned.base.surroundings))
            group.create_task(store.suffer(planned.store))
            if not world.setup.has_clocks:
                group.create_task(_die_both(world, store))
            for client in clients:
                group.create_task(client.work())
        await world.all_up()
        await verdict.settle()
        await verdict.look(is_short=not world.setup.has_clocks)
    finally:
        for client in clients:
            await client.leave()
        for task in listening:
            with suppress(asyncio.CancelledError):
                await task
    verdict.raise_problems()
    return StoredFigures(
        planned,
        time.monotonic() - began,
        verdict.read,
        len(verdict.lost),
        verdict.copies,
        verdict.objects,
        verdict.unknown,
        len(world.gateways) - 1,
    )


async def _die_both(world: World, store: ChaosStore) -> None:
    """Kill the store while it is given files, bring it back full, and kill the gateway while files wait for it."""

    async def is_one(state: str) -> bool:
        found = rows(world.gateways[-1])
        return any(row.state == state for row in found) or len(found) > MANY

    await until(lambda: is_one("stored"), what="a file is stored")
    await store.kill()
    await store.start(is_full=True)
    await until(lambda: is_one("spooled"), what="a file waits on the gateway's disk")
    await world.gateways[-1].kill()
    await store.free()
    await world.die(0.0)
