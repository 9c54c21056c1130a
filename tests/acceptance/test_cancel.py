"""Every way to cancel a job, in every state: the right one ends, once, and no other."""

from __future__ import annotations

import asyncio
import json
import signal
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab, Simulator, until
from tests.support.two_users import ANNA, BEN, with_keys
from tests.support.workflows import slow

BY_NAME = ("delete", "interrupt", "cancel", "cancel batch")
OF_ALL = ("clear", "interrupt all")
Answer = tuple[int, str, Any]


def long(seed: int = 1) -> dict[str, Any]:
    """A prompt that runs for a minute if nobody stops it."""
    return slow(seed, steps=600, step_seconds=0.1)


async def ask(comfy: Comfy, way: str, prompt_id: str = "") -> Answer:
    """One request to cancel: status, kind and body of its answer."""
    path, body = {
        "delete": ("/queue", {"delete": [prompt_id]}),
        "clear": ("/queue", {"clear": True}),
        "interrupt": ("/interrupt", {"prompt_id": prompt_id}),
        "interrupt all": ("/interrupt", None),
        "cancel": (f"/api/jobs/{prompt_id}/cancel", None),
        "cancel batch": ("/api/jobs/cancel", {"job_ids": [prompt_id]}),
    }[way]
    async with comfy.http.post(comfy.url + path, json=body, headers=comfy.headers) as answer:
        kind, text = answer.headers.get("Content-Type", ""), await answer.text()
        return answer.status, kind, json.loads(text) if "json" in kind else text


def fate(way: str, state: str, named: bool) -> str:
    """What ComfyUI makes of a job: deleting takes what has not started, interrupting what runs."""
    if state == "ended":
        return "success"
    if state == "running":
        is_hit = way == "interrupt all" or (named and way in ("interrupt", "cancel", "cancel batch"))
        return "interrupted" if is_hit else "success"
    is_hit = way == "clear" or (named and way in ("delete", "cancel", "cancel batch"))
    return "gone" if is_hit else "success"


def outcome(entry: dict[str, Any] | None) -> str:
    """How a job ended, by its history entry; one that was cancelled before it ran has none."""
    if entry is None:
        return "gone"
    last = str(entry["status"]["messages"][-1][0])
    return {"execution_success": "success", "execution_interrupted": "interrupted"}.get(last, last)


async def idle(comfy: Comfy) -> bool:
    """Whether nothing is queued and nothing runs."""
    return bool((await comfy.get("/prompt"))["exec_info"]["queue_remaining"] == 0)


async def asked(lab: Lab, simulator: Simulator, route: str, count: int) -> None:
    """Wait until a backend was asked so often."""

    async def look() -> bool:
        return (await simulator.requests(lab.http)).get(route, 0) >= count

    await until(look, what=f"{count} × {route}")


# A prompt that takes so long that it can't end before its cancellation comes.
SENT = slow(7, steps=6, step_seconds=0.1)


@dataclass
class Jobs:
    """Jobs in every state, two of most: one is named to be cancelled, the other is its neighbour."""

    comfy: Comfy
    named: dict[str, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    on_its_way: asyncio.Task[str] | None = None

    async def post(self, seconds: float = 0.05) -> str:
        """A prompt that takes so long."""
        return await self.comfy.prompt(slow(steps=5, step_seconds=seconds / 5))

    async def start(self) -> None:
        """The states of a single ComfyUI."""
        self.named["ended"] = await self.post()
        await self.comfy.entry(self.named["ended"])
        self.named["running"] = await self.post(2.5)
        self.named["pending"], self.others["pending"] = await self.post(), await self.post()
        await self.comfy.running(self.named["running"])

    async def start_more(self, lab: Lab, simulator: Simulator) -> None:
        """The states that a gateway adds; one more fills the backend."""
        await simulator.fault(lab.http, "hold-prompt")
        before = (await simulator.requests(lab.http))["POST /prompt"]
        self.named["sending"] = str(uuid.uuid4())
        prompt = self.comfy.prompt(SENT, prompt_id=self.named["sending"])
        self.on_its_way = asyncio.create_task(prompt)
        await asked(lab, simulator, "POST /prompt", before + 1)
        self.named["waiting"], self.others["waiting"] = await self.post(), await self.post()

    async def cancel(self, way: str) -> dict[str, tuple[Answer, Answer]]:
        """Ask twice for each that is named, the one that runs last; or twice for all."""
        answers = {}
        order = ("unknown", "ended", "waiting", "sending", "pending", "running") if way in BY_NAME else ("all",)
        for state in order:
            prompt_id = self.named.get(state, str(uuid.uuid4()))
            if state in self.named or state in ("unknown", "all"):
                first = await ask(self.comfy, way, prompt_id)
                # A second interrupt of all would rightly stop what runs next.
                answers[state] = first, first if way == "interrupt all" else await ask(self.comfy, way, prompt_id)
        return answers

    async def check(self, way: str) -> None:
        """Everything has come to the end that ComfyUI gives it."""
        await until(lambda: idle(self.comfy), what="all have ended")
        history = await self.comfy.get("/history")
        for jobs, is_named in ((self.named, way in BY_NAME), (self.others, False)):
            for state, prompt_id in jobs.items():
                assert outcome(history.get(prompt_id)) == fate(way, state, is_named), (way, state, is_named)


@pytest.mark.parametrize("way", BY_NAME + OF_ALL)
async def test_the_right_job_ends_and_no_other(lab: Lab, way: str) -> None:
    """Alone and behind the gateway: the same answers and the same ends."""
    alone, backend = await lab.simulators(2)
    gateway = await lab.gateway(backend, dispatch__max_queue=4)
    single, jobs = Jobs(Comfy(lab.http, alone.url)), Jobs(Comfy(lab.http, gateway.url))
    await asyncio.gather(single.start(), jobs.start())
    await jobs.start_more(lab, backend)
    wanted, answers = await single.cancel(way), await jobs.cancel(way)
    await backend.no_faults(lab.http)
    for state, pair in wanted.items():
        # The one that runs may have ended before it is asked for again.
        count = 1 if state == "running" else 2
        assert answers[state][:count] == pair[:count], state
    for state in {"waiting", "sending"} & answers.keys():
        assert answers[state] == wanted["pending"], state
    await asyncio.gather(single.check(way), jobs.check(way))
    assert jobs.on_its_way is not None
    assert await jobs.on_its_way == jobs.named["sending"]
    direct = Comfy(lab.http, backend.url)
    await until(lambda: idle(direct), what="nothing is left at the backend")
    there = (await direct.get("/history")).values()
    entry = next((each for each in there if each["prompt"][2] == SENT), None)
    assert outcome(entry) in (
        ("gone", "interrupted") if fate(way, "sending", way in BY_NAME) == "gone" else ("success",)
    )


async def test_anothers_jobs_are_out_of_reach(lab: Lab) -> None:
    """Its ids answer as unknown ones do, and `all` means the caller's own."""
    gateway = await with_keys(lab)
    anna, ben = (Comfy(lab.http, gateway.url, X_API_Key=key) for key in (ANNA, BEN))
    jobs = Jobs(anna)
    await jobs.start()
    own = await ben.prompt(slow())
    for way in BY_NAME:
        unknown = await ask(ben, way, str(uuid.uuid4()))
        for prompt_id in jobs.named.values():
            assert await ask(ben, way, prompt_id) == unknown, way
    assert (await ask(ben, "interrupt all"))[0] == (await ask(ben, "clear"))[0] == 200
    assert await ben.get("/queue") == {"queue_running": [], "queue_pending": []}
    await jobs.check("nothing")
    assert await ben.get("/history") == {}
    assert await ben.get(f"/history/{own}") == {}


async def test_a_batch_takes_each_state_at_once(lab: Lab) -> None:
    backend = await lab.simulator()
    gateway = await lab.gateway(backend, dispatch__max_queue=4)
    comfy = Comfy(lab.http, gateway.url)
    jobs = Jobs(comfy)
    await jobs.start()
    await jobs.start_more(lab, backend)
    ids = [*jobs.named.values(), *jobs.named.values(), str(uuid.uuid4())]
    assert await comfy.post("/api/jobs/cancel", {"job_ids": ids}) == (200, {"cancelled": True})
    await backend.no_faults(lab.http)
    await jobs.check("cancel batch")
    assert await comfy.post("/api/jobs/cancel", {"job_ids": ids}) == (200, {"cancelled": False})


@pytest.mark.parametrize("old", [(), ("no-prompt-id",)], ids=["", "no-prompt-id"])
@pytest.mark.parametrize("answered", [True, False], ids=["answered", "never-answered"])
async def test_one_that_arrives_after_its_cancel_is_dropped(lab: Lab, answered: bool, old: tuple[str, ...]) -> None:
    """Its backend is idle, so it starts as it arrives; it would run for a minute."""
    backend = await lab.simulator("--fail", "hold-prompt", *(word for fault in old for word in ("--fail", fault)))
    gateway = await lab.gateway(backend, probe__lost_after=30 if answered else 0.5)
    comfy, direct = Comfy(lab.http, gateway.url), Comfy(lab.http, backend.url)
    prompt_id = str(uuid.uuid4())
    sending = asyncio.create_task(comfy.prompt(long(), prompt_id=prompt_id))
    await asked(lab, backend, "POST /prompt", 1)
    assert (await comfy.post(f"/api/jobs/{prompt_id}/cancel"))[1] == {"cancelled": True}
    if not answered:
        assert await sending == prompt_id
    await _switch_off(lab, backend, "hold-prompt")
    assert await sending == prompt_id
    await _stopped(direct)
    assert await comfy.get("/history") == {}
    again = await comfy.prompt(slow(2))
    assert outcome(await comfy.entry(again)) == "success"


async def _switch_off(lab: Lab, backend: Simulator, fault: str) -> None:
    async with lab.http.delete(f"{backend.url}/simulator/faults", params={"fault": fault}) as answer:
        assert answer.status == 200


async def _stopped(direct: Comfy) -> None:
    """Wait until the one prompt that a backend had was interrupted."""

    async def look() -> list[str]:
        return [outcome(entry) for entry in (await direct.get("/history")).values()]

    assert await until(look, 10, "the prompt is stopped") == ["interrupted"]
    assert await idle(direct)


@pytest.mark.parametrize("old", [(), ("no-prompt-id",)], ids=["", "no-prompt-id"])
async def test_one_that_runs_before_it_is_answered(lab: Lab, old: tuple[str, ...]) -> None:
    """Its events come before its id there is known: none is lost, and a cancel stops it."""
    backend = await lab.simulator("--fail", "hold-answer", *(word for fault in old for word in ("--fail", fault)))
    gateway = await lab.gateway(backend)
    comfy, direct = Comfy(lab.http, gateway.url), Comfy(lab.http, backend.url)
    prompt_id = str(uuid.uuid4())
    listener = await comfy.listen("c")
    sending = asyncio.create_task(comfy.prompt(slow(steps=40, step_seconds=0.05), "c", prompt_id=prompt_id))
    await _runs_something(direct)
    await _switch_off(lab, backend, "hold-answer")
    assert await sending == prompt_id
    await listener.end_of(prompt_id)
    told = [type_ for type_ in listener.of(prompt_id) if type_.startswith("exec")]
    assert told == [
        "execution_start",
        "execution_cached",
        *["executing"] * 2,
        "executed",
        "execution_success",
        "executing",
    ]
    await comfy.post("/history", {"clear": True})
    await direct.post("/history", {"clear": True})
    await backend.fault(lab.http, "hold-answer")
    second = str(uuid.uuid4())
    sending = asyncio.create_task(comfy.prompt(long(), "c", prompt_id=second))
    await _runs_something(direct)
    assert (await ask(comfy, "cancel", second))[2] == {"cancelled": True}
    await _stopped(direct)
    await backend.no_faults(lab.http)
    assert await sending == second


async def _runs_something(direct: Comfy) -> None:
    async def look() -> bool:
        return bool((await direct.get("/queue"))["queue_running"])

    await until(look, what="it runs there")


async def test_the_same_id_again_while_the_first_is_on_its_way(lab: Lab) -> None:
    """Cancelled while it is sent, and sent again at once: the second runs, the first does not."""
    backend = await lab.simulator("--fail", "hold-prompt")
    gateway = await lab.gateway(backend)
    comfy, direct = Comfy(lab.http, gateway.url), Comfy(lab.http, backend.url)
    prompt_id = str(uuid.uuid4())
    first = asyncio.create_task(comfy.prompt(long(), prompt_id=prompt_id))
    await asked(lab, backend, "POST /prompt", 1)
    assert (await ask(comfy, "delete", prompt_id))[0] == 200
    second = asyncio.create_task(comfy.prompt(slow(2), prompt_id=prompt_id))
    await asked(lab, backend, "POST /prompt", 2)
    await backend.no_faults(lab.http)
    assert [await first, await second] == [prompt_id, prompt_id]
    entry = await comfy.entry(prompt_id)
    assert outcome(entry) == "success"
    assert entry["prompt"][2] == slow(2)
    await until(lambda: idle(direct))


async def test_one_that_is_cancelled_and_then_refused_leaves_nothing(lab: Lab) -> None:
    """The backend's 400 comes late, to a client that has had its answer: no entry, and none after a restart."""
    backend = await lab.simulator("--fail", "hold-prompt")
    gateway = await lab.gateway(backend, dispatch__send_timeout=0.2)
    comfy = Comfy(lab.http, gateway.url)
    prompt_id = await comfy.prompt(slow(steps=-5))
    assert (await ask(comfy, "delete", prompt_id))[0] == 200
    await backend.no_faults(lab.http)

    async def refused() -> bool:
        async with lab.http.get(f"{gateway.url}/metrics") as answer:
            return 'outcome="4xx"' in await answer.text()

    await until(refused)
    assert outcome(await comfy.entry(await comfy.prompt(slow()))) == "success"
    await gateway.stop()
    again = Comfy(lab.http, (await lab.gateway(backend)).url)
    assert prompt_id not in await again.get("/history")


async def test_the_place_of_a_cancelled_job_is_free_at_once(lab: Lab) -> None:
    backend = await lab.simulator()
    gateway = await lab.gateway(backend, dispatch__max_queue=2, probe__interval=60)
    comfy = Comfy(lab.http, gateway.url)
    ids = [await comfy.prompt(long(n)) for n in range(4)]
    await comfy.running(ids[0])
    assert (await ask(comfy, "delete", ids[1]))[0] == 200
    await asked(lab, backend, "POST /prompt", 3)
    assert [item[1] for item in (await Comfy(lab.http, backend.url).get("/queue"))["queue_pending"]] == [
        gateway.upstream_ids()[ids[2]]
    ]
    assert (await ask(comfy, "clear"))[0] == (await ask(comfy, "interrupt all"))[0] == 200
    await until(lambda: idle(comfy))


# -- backends that do not answer ---------------------------------------------------------------------------------


@dataclass
class OneHangs:
    """Three backends with a running and a pending job each; the first one is stopped."""

    comfy: Comfy
    stopped: Simulator
    jobs: dict[str, list[str]]
    gateway: GatewayProcess

    @property
    def ids(self) -> list[str]:
        """All jobs."""
        return [prompt_id for ids in self.jobs.values() for prompt_id in ids]


async def one_hangs(lab: Lab, **settings: Any) -> OneHangs:
    """Start them."""
    simulators = await lab.simulators(3)
    gateway = await lab.gateway(*simulators, **settings)
    comfy = Comfy(lab.http, gateway.url)
    ids = [await comfy.prompt(long(n), "c") for n in range(6)]
    for prompt_id in ids[:3]:
        await comfy.running(prompt_id)
    jobs, known = {}, {upstream_id: prompt_id for prompt_id, upstream_id in gateway.upstream_ids().items()}
    for simulator in simulators:
        queue = await Comfy(lab.http, simulator.url).get("/queue")
        jobs[simulator.url] = [known[item[1]] for items in queue.values() for item in items]
    assert sorted(len(own) for own in jobs.values()) == [2, 2, 2]
    simulators[0].signal(signal.SIGSTOP)
    return OneHangs(comfy, simulators[0], jobs, gateway)


async def test_a_hanging_backend_holds_up_no_cancel(lab: Lab) -> None:
    """The answer comes soon, the others' jobs end, and the hanging one's as soon as it is back."""
    hanging = await one_hangs(lab)
    comfy = hanging.comfy
    began = time.monotonic()
    assert await comfy.post("/api/jobs/cancel", {"job_ids": hanging.ids}) == (200, {"cancelled": True})
    assert time.monotonic() - began < 3
    running, pending = hanging.jobs.pop(hanging.stopped.url)
    runs_there = hanging.gateway.upstream_ids()[running]
    for other_running, other_pending in hanging.jobs.values():
        assert outcome(await comfy.entry(other_running, 5)) == "interrupted"
        assert await comfy.get(f"/history/{other_pending}") == {}
    assert [[item[1] for item in items] for items in (await comfy.get("/queue")).values()] == [[running], []]
    hanging.stopped.signal(signal.SIGCONT)
    assert outcome(await comfy.entry(running)) == "interrupted"
    direct = Comfy(lab.http, hanging.stopped.url)
    await until(lambda: idle(direct), what="nothing is left at the backend")
    assert pending not in await comfy.get("/history")
    assert list(await direct.get("/history")) == [runs_there]


async def test_an_interrupted_job_of_a_lost_backend_is_not_run_again(lab: Lab) -> None:
    """It was running on a backend that hangs, was interrupted, and the backend is given up: it ends as interrupted."""
    hanging = await one_hangs(lab, probe__timeout=0.3, probe__lost_after=1.5)
    comfy = hanging.comfy
    running, pending = hanging.jobs.pop(hanging.stopped.url)
    listener = await comfy.listen("c", "&events=interleave")
    began = time.monotonic()
    assert (await ask(comfy, "interrupt", running))[0] == 200
    assert time.monotonic() - began < 3
    assert outcome(await comfy.entry(running)) == "interrupted"
    assert (await comfy.get(f"/api/jobs/{running}"))["status"] == "cancelled"
    assert (await ask(comfy, "clear"))[0] == (await ask(comfy, "interrupt all"))[0] == 200
    hanging.stopped.signal(signal.SIGCONT)
    direct = Comfy(lab.http, hanging.stopped.url)
    await until(lambda: idle(direct), what="nothing is left at the backend")
    assert {outcome(entry) for entry in (await direct.get("/history")).values()} <= {"interrupted"}
    await listener.next("execution_interrupted", prompt_id=running)
    await listener.end_of(running)
    assert pending not in await comfy.get("/history")


async def test_an_interrupt_that_failed_is_sent_again(lab: Lab) -> None:
    backend = await lab.simulator()
    gateway = await lab.gateway(backend)
    comfy = Comfy(lab.http, gateway.url)
    prompt_id = await comfy.prompt(long())
    await comfy.running(prompt_id)
    await backend.fault(lab.http, "500:/interrupt")
    assert (await ask(comfy, "cancel", prompt_id))[2] == {"cancelled": True}
    await asked(lab, backend, "POST /interrupt", 1)
    await backend.no_faults(lab.http)
    assert outcome(await comfy.entry(prompt_id)) == "interrupted"


# -- old backends ------------------------------------------------------------------------------------------------

OLD = ("no-jobs", "no-features", "no-version", "no-prompt-id", "no-metadata", "interrupt-any")


async def old_backend(lab: Lab, *faults: str) -> tuple[Simulator, GatewayProcess]:
    """A gateway before one old backend."""
    backend = await lab.simulator(*(word for fault in faults for word in ("--fail", fault)))
    return backend, await lab.gateway(backend, dispatch__max_queue=4)


@pytest.mark.parametrize("way", ["cancel batch", "interrupt all"])
async def test_an_old_backend_can_all_of_it(lab: Lab, way: str) -> None:
    """It has no /api/jobs, mints its own ids, and interrupts whatever runs: the gateway does with what it has."""
    backend, gateway = await old_backend(lab, *OLD)
    jobs = Jobs(Comfy(lab.http, gateway.url))
    await jobs.start()
    await jobs.start_more(lab, backend)
    await jobs.cancel(way)
    await _switch_off(lab, backend, "hold-prompt")
    await jobs.check(way)
    listed = (await jobs.comfy.get("/api/jobs"))["jobs"]
    assert {job["id"] for job in listed} == set(await jobs.comfy.get("/history"))
    assert isinstance(await jobs.comfy.get("/features"), dict)
    assert len((await jobs.comfy.get("/system_stats"))["devices"]) == 1


async def test_an_old_backend_is_not_told_to_stop_anothers_job(lab: Lab) -> None:
    """The job to interrupt has ended there, unheard, and another's runs: it is looked at before it is told to stop."""
    backend, gateway = await old_backend(lab, "interrupt-any")
    comfy, direct = Comfy(lab.http, gateway.url), Comfy(lab.http, backend.url)
    mine = await comfy.prompt(slow(steps=20))
    await comfy.running(mine)
    anothers = await direct.prompt(slow(steps=60))
    await backend.fault(lab.http, "500:/ws")
    await backend.fault(lab.http, "drop-socket")
    await direct.running(anothers)
    assert [item[1] for item in (await comfy.get("/queue"))["queue_running"]].count(mine) == 1
    before = (await backend.requests(lab.http)).get("GET /queue", 0)
    for way in ("interrupt", "cancel", "interrupt all"):
        assert (await ask(comfy, way, mine))[0] == 200
    requests = await backend.requests(lab.http)
    assert "POST /interrupt" not in requests
    assert requests["GET /queue"] > before
    assert outcome(await direct.entry(anothers)) == "success"
    await backend.no_faults(lab.http)
    assert outcome(await comfy.entry(mine)) == "success"
