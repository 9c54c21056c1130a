"""One seed: everything is started, goes wrong, settles, and is looked at from outside."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import verdict
from tests.chaos.clients import Client
from tests.chaos.hook import subscribe, untold
from tests.chaos.plan import Plan, plan
from tests.chaos.v2_verdict import run_problems, v2_problems
from tests.chaos.witness import Witness
from tests.chaos.world import World
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, until
from tests.support.webhook_receiver import WebhookReceiver, receiver

MAX_SHOWN = 12


@dataclass(frozen=True)
class Figures:
    """What a run was like."""

    seed: int
    seconds: float
    jobs: int
    outcomes: Counter[str]
    reruns: int
    faults: int
    kills: int
    refused_for_space: int

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items()))
        return (
            f"seed {self.seed}: {self.jobs} jobs ({ends}), {self.reruns} run again, "
            f"{self.faults} faults, gateway killed {self.kills} times, "
            f"{self.refused_for_space} prompts refused for the full disk, {self.seconds:.1f} s"
        )


async def run(seed: int, directory: Path) -> Figures:
    """Run a seed.

    Raises:
        AssertionError: what is not as it must be, and how to see it again.
    """
    began, planned, lab = time.monotonic(), plan(seed), Lab(directory)
    world = World(lab, directory, seed)
    clients = [Client(each, world.url) for each in planned.clients]
    witness = Witness(clients, world.url)
    try:
        async with receiver() as hook:
            figures = await _run(planned, lab, world, clients, witness, hook, began)
    except BaseException as error:
        raise failed(f"make chaos SEED={seed}", planned.text(), error, lab) from error
    finally:
        witness.leave()
        for client in clients:
            await client.leave()
        await world.close()
        await lab.close()
    return figures


def failed(command: str, text: str, error: BaseException, lab: Lab) -> BaseException:
    """Keep the logs and the plan of a run that failed. Return what to raise; it says how to see it again."""
    for place, server in enumerate(lab.servers):
        (lab.directory / f"process-{place}.log").write_text(f"{server.arguments}\n{server.log.read_text()}")
    lab.expect_trouble = True
    if not isinstance(error, Exception):
        return error
    (lab.directory / "plan.txt").write_text(text)
    said = "\n  ".join(_sentences(error))
    return AssertionError(f"{command}: {said}\nplan and logs: {lab.directory}")


def _sentences(error: BaseException) -> list[str]:
    """What went wrong; of several at a time, each."""
    if isinstance(error, BaseExceptionGroup):
        return sorted({sentence for each in error.exceptions for sentence in _sentences(each)})
    return [f"{type(error).__name__}: {error}"]


async def _run(
    planned: Plan,
    lab: Lab,
    world: World,
    clients: list[Client],
    witness: Witness,
    hook: WebhookReceiver,
    began: float,
) -> Figures:
    await world.start()
    comfy = Comfy(lab.http, world.url)
    await subscribe(comfy, hook)
    before = await verdict.level(comfy, world.gateways[-1].pid)
    listening = [asyncio.create_task(client.listen()) for client in clients]
    witnessing = asyncio.create_task(witness.look_on())
    async with asyncio.TaskGroup() as group:
        for number, faults in enumerate(planned.lanes):
            group.create_task(world.suffer(number, faults))
        group.create_task(world.die_now_and_then(planned.kills))
        group.create_task(world.be_disturbed(planned.surroundings))
        for client in clients:
            group.create_task(client.work())
            group.create_task(client.reconnect_now_and_then())
    await world.all_up()
    await _settle(comfy, clients)
    await world.backends_idle()
    await asyncio.gather(*(client.heard_all() for client in clients))
    witness.leave()
    await witnessing
    history, found = await verdict.look(comfy, world, clients)
    found.problems += [*witness.problems, *witness.contradictions(history)]
    found.problems += await untold(hook, clients, history)
    found.problems += await v2_problems(lab, world, clients, history)
    found.problems += await run_problems(lab, world, clients, history)
    for client in clients:
        await client.leave()
    await asyncio.gather(*listening)
    found.problems += await verdict.leaks(comfy, world, before)
    shown = [*found.problems[:MAX_SHOWN], *(["…"] if len(found.problems) > MAX_SHOWN else [])]
    assert not shown, "\n  ".join([f"{len(found.problems)} problems", *shown])
    outcomes = Counter(entry["status"]["status_str"] for entry in history.values())
    faults, deaths = len(planned.faults()), len(world.gateways) - 1
    seconds = time.monotonic() - began
    full = sum(client.refused_for_space for client in clients)
    return Figures(planned.seed, seconds, len(history), outcomes, found.reruns, faults, deaths, full)


async def _settle(comfy: Comfy, clients: list[Client]) -> None:
    """Wait until nothing is open, and every client was told so."""

    async def nothing_open() -> bool:
        return bool((await comfy.get("/prompt"))["exec_info"]["queue_remaining"] == 0)

    await until(nothing_open, 60, "no job is open")

    async def all_told() -> bool:
        return all(client.is_content() for client in clients)

    try:
        await until(all_told, 20)
    except AssertionError:
        # What is missing is said with the rest.
        return
