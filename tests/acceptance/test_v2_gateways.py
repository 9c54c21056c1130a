"""The Comfy API v2 on gateways of other settings: restarts, prefixes, full queues, and many short jobs."""

from __future__ import annotations

import asyncio

from tests.support.lab import Lab, Simulator
from tests.support.security_world import KEYS, caller, start
from tests.support.v2 import TERMINAL, V2Caller, start_v2
from tests.support.workflows import slow


async def test_links_are_those_that_the_client_used(lab: Lab) -> None:
    world = await start_v2(lab, server__base_path="/comfy", server__trusted_proxies="127.0.0.0/8")
    job = await world.anna.submit(slow(steps=1))
    assert job["urls"]["self"] == f"{world.gateway.url}/comfy/api/v2/jobs/{job['id']}"
    assert (await world.anna("GET", job["urls"]["self"])).status == 200
    forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "a.example", "X-Forwarded-Prefix": "/gpu"}
    await world.anna.reaches(job["id"])
    seen = (await world.anna("GET", f"/jobs/{job['id']}", headers=forwarded)).body
    assert seen["urls"]["cancel"] == f"https://a.example/gpu/api/v2/jobs/{job['id']}/cancel"
    assert seen["outputs"][0]["url"].startswith("https://a.example/gpu/api/v2/assets/")


async def test_cancelled_jobs_stay_canceled_also_over_a_restart(lab: Lab) -> None:
    world = await start_v2(lab)
    anna, ben = world.anna, world.ben
    first = await anna.submit(slow(steps=100, step_seconds=0.1), headers={"Idempotency-Key": "kept"})
    await anna.reaches(first["id"], "running")
    second = await anna.submit(slow(2, steps=1), metadata="batch-7")
    third = await ben.submit(slow(3, steps=1))
    assert (await anna.job(second["id"]))["queue_position"] == 1
    assert (await ben.job(third["id"]))["queue_position"] == 1
    for _ in range(2):
        answer = await anna("POST", second["urls"]["cancel"])
        assert (answer.status, answer.body["status"], answer.body["metadata"]) == (200, "canceled", "batch-7")
    # As on the native routes.
    native = caller(lab, world.gateway, "ben")
    await native.post("/queue", {"delete": [third["id"]]})
    assert (await ben.job(third["id"]))["status"] == "canceled"
    answer = await anna("POST", first["urls"]["cancel"])
    assert answer.body["status"] == "canceling"
    await anna.reaches(first["id"], "canceled")
    assert (await anna("POST", first["urls"]["cancel"])).body["status"] == "canceled"
    assert (await anna("GET", f"/jobs/{second['id']}/workflow")).status == 404
    listed = {item["id"]: item["status"] for item in (await anna("GET", "/jobs")).body["jobs"]}
    assert listed == {first["id"]: "canceled", second["id"]: "canceled"}
    await world.gateway.kill()
    await world.gateway.start()
    await lab.backends_up(world.gateway, 1)
    for caller_, job in ((anna, first), (anna, second), (ben, third)):
        assert (await caller_.job(job["id"]))["status"] == "canceled"
    assert (await anna.job(second["id"]))["metadata"] == "batch-7"
    answer = await anna("POST", "/jobs", json={"workflow": slow()}, headers={"Idempotency-Key": "kept"})
    assert answer.body["error"]["code"] == "idempotency_key_reuse"
    # Their owner deletes them as all ended jobs.
    native = caller(lab, world.gateway, "anna")
    await native.post("/history", {"delete": [second["id"], third["id"]]})
    assert (await anna("GET", f"/jobs/{second['id']}")).status == 404
    assert (await ben.job(third["id"]))["status"] == "canceled"
    await native.post("/history", {"clear": True})
    assert (await anna("GET", "/jobs")).body["jobs"] == []
    await world.gateway.stop()
    assert b"batch-7" not in (world.gateway.data_dir / "gateway.sqlite3").read_bytes()


async def test_a_full_queue_frees_the_key(lab: Lab) -> None:
    world = await start_v2(lab, dispatch__max_waiting=1, dispatch__max_queue=1)
    anna = world.anna
    jobs = [await anna.submit(slow(1, steps=200, step_seconds=0.1))]
    await anna.reaches(jobs[0]["id"], "running")
    while True:
        headers = {"Idempotency-Key": f"k{len(jobs)}"}
        answer = await anna("POST", "/jobs", json={"workflow": slow(len(jobs))}, headers=headers)
        if answer.status != 201:
            break
        jobs.append(answer.body)
    assert (answer.status, answer.body["error"]["code"]) == (429, "queue_full")
    assert int(answer.headers["Retry-After"]) > 0
    for job in jobs:
        await anna("POST", job["urls"]["cancel"])
    await anna.submit(slow(99, steps=1), headers=headers)


async def test_no_wrong_state_in_five_hundred_short_jobs(lab: Lab) -> None:
    """Polled without a pause from the submission to the end: never missing, never expired, never backwards."""
    world = await start_v2(lab, 3, store__synchronous="NORMAL")
    order = {"queued": 0, "running": 1, "succeeded": 2}
    looks = 0

    async def follow(n: int) -> None:
        nonlocal looks
        who = world.anna if n % 2 else world.ben
        empty = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": n}}
        saved = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "short"}}
        job = await who.submit({"1": empty, "2": saved})
        last = 0
        while last < 2:
            async with lab.http.get(job["urls"]["self"], headers=who.headers) as answer:
                seen = await answer.json()
                assert answer.status == 200, seen
            assert order[seen["status"]] >= last, seen
            last = order[seen["status"]]
            looks += 1
        assert len(seen["outputs"]) == 1

    numbers = iter(range(500))

    async def client() -> None:
        for n in numbers:
            await follow(n)

    await asyncio.gather(*(client() for _ in range(8)))
    assert looks > 500


async def test_a_job_whose_backend_dies_runs_on_for_its_clients(lab: Lab) -> None:
    """Neither a look nor a stream sees it go back: it runs, and succeeds."""
    simulators = await lab.simulators(2)
    gateway = await start(lab, *simulators, dispatch__backoff=0.05, probe__lost_after=2)
    anna = V2Caller(lab, gateway, KEYS["anna"])
    for each in simulators:
        await each.fault(lab.http, "silent:4")
    job = await anna.submit(slow(5, steps=12, step_seconds=0.1))
    await anna.reaches(job["id"], "running")
    async with anna.stream(job) as stream:
        first = await stream.next()
        at_work = [each for each in simulators if await runs_something(lab, each)]
        await at_work[0].kill()
        await next(each for each in simulators if each.running).no_faults(lab.http)
        statuses = []
        while not statuses or statuses[-1] not in TERMINAL:
            statuses.append((await anna.job(job["id"]))["status"])
        events = await stream.rest()
    assert set(statuses) == {"running", "succeeded"}
    told = [data["status"] for name, data in [first or ("", {}), *events] if name == "status"]
    assert set(told[:-1]) == {"running"}
    assert told[-1] == "succeeded"
    assert [name for name, _ in events].count("output") == 1
    values = [data["value"] for name, data in events if name == "progress"]
    assert values == sorted(values)


async def runs_something(lab: Lab, simulator: Simulator) -> bool:
    """Whether a backend runs a prompt."""
    async with lab.http.get(f"{simulator.url}/queue") as answer:
        return bool((await answer.json())["queue_running"])


async def test_a_rate_that_is_reached_frees_the_key(lab: Lab) -> None:
    world = await start_v2(lab, tenants__default__limits__prompts_per_minute=2)
    for n in range(2):
        await world.anna.submit(slow(n, steps=1))
    answer = await world.anna("POST", "/jobs", json={"workflow": slow()}, headers={"Idempotency-Key": "k"})
    assert (answer.status, answer.body["error"]["code"]) == (429, "rate_limited")
    assert answer.headers["Retry-After"].isdigit()
    assert answer.body["error"]["details"]["limit"] == "prompts_per_minute"
    # Another tenant has a rate of its own, and the key was not used.
    answer = await world.ben("POST", "/jobs", json={"workflow": slow(steps=1)}, headers={"Idempotency-Key": "k"})
    assert answer.status == 201
    assert answer.headers["RateLimit"].startswith('"prompts_per_minute";r=1')


async def test_while_no_backend_is_up(lab: Lab) -> None:
    """Before any backend was up the client is to wait as for a cold start. After that a job waits, and uses its key."""
    simulator = await lab.simulator()
    port = simulator.port
    await simulator.kill()
    gateway = await start(lab, simulator.url, up=0)
    anna, key = V2Caller(lab, gateway, KEYS["anna"]), {"Idempotency-Key": "k"}
    answer = await anna("POST", "/jobs", json={"workflow": slow()}, headers=key)
    assert (answer.status, answer.body["error"]["code"]) == (429, "deployment_not_ready")
    assert answer.headers["Retry-After"] == "5"
    again = await lab.simulator(port=port)
    await lab.backends_up(gateway, 1)
    await anna.run(slow(steps=1))
    await again.kill()
    await lab.backends_up(gateway, 0)
    job = await anna.submit(slow(), headers=key)
    assert (await anna.job(job["id"]))["queue_position"] == 1
    answer = await anna("POST", "/jobs", json={"workflow": slow()}, headers=key)
    assert answer.body["error"]["code"] == "idempotency_key_reuse"
    assert (await anna("POST", job["urls"]["cancel"])).body["status"] == "canceled"
