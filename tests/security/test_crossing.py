"""Two tenants with the same client ids, file names, prompt ids and workflows: nothing of one reaches the other.

Over one backend, where both write into the same folders, and over three. What a caller is told of what is another's is,
byte by byte, what it is told of what is nobody's.
"""

from __future__ import annotations

import asyncio
import json
import re
import struct
from base64 import b64decode, b64encode
from dataclasses import dataclass
from itertools import product
from typing import Any
from urllib.parse import quote, urlencode
from uuid import UUID

import pytest

from gateway.bus import session_topic
from gateway.comfy.previews import Preview, encode_legacy, encode_with_metadata
from gateway.web.app import COMFYUI, JOBS
from gateway.web.v2.outputs import job_of, outputs_of
from gateway.web.v2.table import ROUTES as V2_ROUTES
from tests.support.comfy_client import Comfy, Listener
from tests.support.lab import GatewayProcess, Lab, Simulator, until
from tests.support.pictures import colour, png
from tests.support.security_world import KEYS, Seen, ask, broadcast, caller, start
from tests.support.uploads import load, upload
from tests.support.v2 import V2Caller, hash_of, reference
from tests.support.workflows import failing, slow

SHARED_ID = "11111111-2222-4333-8444-555555555555"
NOBODYS = "99999999-2222-4333-8444-555555555555"
# What only Anna ever wrote: it must not be in anything that Ben is told.
MARK = "annas-mark"


@dataclass
class World:
    """Two tenants, and what the first has."""

    lab: Lab
    simulators: list[Simulator]
    gateway: GatewayProcess
    anna: Comfy
    ben: Comfy
    boss: Comfy
    ended: str = ""
    failed: str = ""
    running: str = ""
    pending: str = ""
    image: dict[str, str] | None = None
    asset: str = ""
    output: str = ""


def marked(seed: int, **more: Any) -> dict[str, Any]:
    """A workflow of Anna's: its file, and a text in it, bear her mark."""
    prompt = slow(seed, prefix=f"{MARK}/{MARK}", **more)
    prompt["1"]["_meta"] = {"title": MARK}
    return prompt


async def world_of(lab: Lab, count: int) -> World:
    """Anna has ended, failed, running and pending jobs, uploads and saved files; Ben has a job of the same id."""
    simulators = await lab.simulators(count)
    gateway = await start(lab, *simulators, dispatch__work_stealing="false")
    world = World(lab, simulators, gateway, *(caller(lab, gateway, name) for name in ("anna", "ben", "boss")))
    anna, ben = world.anna, world.ben
    await upload(anna, png((1, 2, 3)), f"{MARK}.png")
    await upload(anna, png((1, 2, 3)), "same.png")
    await upload(ben, png((7, 8, 9)), "same.png")
    await anna.post(f"/userdata/{quote(f'workflows/{MARK}.json', safe='')}", {"text": MARK})
    await anna.post(f"/settings/{MARK}", MARK)
    extra = {"extra_pnginfo": {"workflow": {"id": MARK}}}
    world.ended = await anna.prompt(marked(0x010203), "same", prompt_id=SHARED_ID, extra_data=extra)
    await ben.prompt(slow(0x070809, prefix="bens"), "same", prompt_id=SHARED_ID)
    entry = await anna.entry(SHARED_ID)
    (world.image,) = anna.images(entry)
    (output,) = outputs_of(SHARED_ID, entry["outputs"])
    world.output = output.id
    world.asset = (await V2Caller(lab, gateway, KEYS["anna"]).upload(png((1, 2, 3)), f"{MARK}-v2.png")).body["id"]
    await ben.entry(SHARED_ID)
    world.failed = await anna.prompt(failing(MARK), "same")
    await anna.entry(world.failed)
    for _ in range(count):
        world.running = await anna.prompt(marked(1, steps=1000, step_seconds=0.5), "same")
        await anna.running(world.running)
    world.pending = await anna.prompt(marked(2, steps=1000, step_seconds=0.5), "same")
    return world


def told_apart(seen: Seen, *ids: str) -> Seen:
    """An answer without the id, or name, that was asked for: it is the caller's own word."""
    body, headers = seen.body, seen.headers
    for each in ids:
        for spelled in (each, quote(each, safe=""), json.dumps(each)[1:-1]):
            body = body.replace(spelled.encode(), b"ASKED")
            headers = tuple((k, v.replace(spelled, "ASKED")) for k, v in headers)
    # A name that was left out may be longer than the one beside it.
    return Seen(seen.status, tuple((k, v) for k, v in headers if k != "content-length"), body)


def names_of(world: World) -> dict[str, tuple[str, ...]]:
    """For each parameter of a route, or of a query, what is Anna's."""
    return {
        "prompt_id": (world.ended, world.failed, world.running, world.pending),
        "job_id": (world.ended, world.failed, world.running, world.pending),
        "asset_id": (world.asset, world.output),
        "hash": (hash_of(png((1, 2, 3))),),
        "file": (f"workflows/{MARK}.json", f"{MARK}.json"),
        "dest": ("x.json",),
        "id": (MARK,),
        "kind": ("input", "output", "temp"),
        "folder": ("checkpoints", "output", "input", MARK),
        "node_class": ("LoadImage", "SaveImage", "LoadImageMask"),
        "path": (
            "checkpoints/0/x",
            f"output/0/{MARK}.png",
            f"checkpoints/0/..%2f..%2foutput%2f{MARK}%2f{MARK}_00001_.png",
        ),
    }


def reads(world: World) -> list[str]:
    """Every GET that the gateway answers, filled with what is Anna's, plainly and in queries."""
    paths: list[str] = []
    known = names_of(world)
    queries = [
        "",
        f"?filename={MARK}.png&type=input",
        f"?filename={MARK}_00001_.png&subfolder={MARK}&type=output",
        f"?filename={MARK}%2F{MARK}_00001_.png&tenant=anna",
        f"?max_items=100&offset=0&workflow_id={MARK}&status=pending,in_progress,completed,failed&tenant=anna",
        "?dir=.&recurse=true&full_info=true&path=&tenant=anna&isolation=shared&user=anna",
    ]
    for method, template, _ in COMFYUI + JOBS + V2_ROUTES:
        if method != "GET" or template == "/ws":
            continue
        filled = [template]
        for name in re.findall(r"\{(\w+)[^}]*\}", template):
            filled = [
                re.sub(
                    rf"\{{{name}[^}}]*\}}",
                    value if "%" in value else quote(value, safe="/" if name == "path" else ""),
                    each,
                )
                for each in filled
                for value in known[name]
            ]
        # The Comfy API v2 is below /api alone.
        prefixes = ("",) if template.startswith("/api/v2") else ("", "/api")
        paths += [api + path + query for path in filled for query in queries for api in prefixes]
    more = (
        "/vhs/viewvideo",
        "/pysssss/view",
        "/nothing",
        "/api/assets",
        "/api/tags",
        "//history",
        "/queue/",
        "/api//jobs",
    )
    return paths + [path + query for path in more for query in queries]


@pytest.mark.parametrize("count", [1, 3])
async def test_nothing_crosses_in_any_read(lab: Lab, count: int) -> None:
    world = await world_of(lab, count)
    paths = reads(world)
    assert len(paths) > 300
    foreign = [MARK.encode(), *(each.encode() for each in (world.failed, world.running, world.pending))]
    # Ben may be told again what he asked for; he asks for Anna's ids in the path alone.
    for start_at in range(0, len(paths), 20):
        some = paths[start_at : start_at + 20]
        answers = await asyncio.gather(*(ask(world.ben, "GET", path) for path in some))
        for path, seen in zip(some, answers, strict=True):
            shown = told_apart(seen, *(each for each in (MARK, *own_words(world)) if each in path))
            assert not [mark for mark in foreign if mark in shown.body], (path, seen)
            assert _colour(seen) != (1, 2, 3), path
            assert seen.status < 500, (path, seen)
    # The same are found by whose they are: so Ben's were the right questions.
    ends = [path for path in paths if "/events" not in path]
    told = b"".join([(await ask(world.anna, "GET", path)).body for path in ends[::7]])
    for mark in foreign:
        assert mark in told
    assert world.image is not None
    assert colour(await world.anna.view(world.image)) == (1, 2, 3)


def own_words(world: World) -> tuple[str, ...]:
    """What Ben asks for, and so may be told again."""
    return (*names_of(world)["job_id"], *names_of(world)["asset_id"])


def _colour(seen: Seen) -> Any:
    is_image = any(name == "content-type" and value.startswith("image/") for name, value in seen.headers)
    return colour(seen.body) if is_image and seen.body else None


@pytest.mark.parametrize("count", [1, 3])
async def test_what_is_anothers_answers_as_what_is_nobodys(lab: Lab, count: int) -> None:
    """Statuses, headers and bodies, for reads and writes; and none of them did anything."""
    world = await world_of(lab, count)
    ben = world.ben

    async def same(method: str, path: str, body: Any, mine: str, nobodys: str) -> None:
        filled = [
            (path.replace("ID", quote(each, safe="")), json.loads(json.dumps(body).replace("ID", each)))
            for each in (mine, nobodys)
        ]
        found, unknown = [await ask(ben, method, *each) for each in filled]
        assert told_apart(found, mine) == told_apart(unknown, nobodys), (method, path, body)

    for each in (world.failed, world.running, world.pending):
        for method, path, body in (
            ("GET", "/history/ID", None),
            ("HEAD", "/history/ID", None),
            ("GET", "/api/jobs/ID", None),
            ("GET", "/api/api/jobs/ID", None),
            ("POST", "/api/jobs/ID/cancel", None),
            ("POST", "/api/jobs/cancel", {"job_ids": ["ID"]}),
            ("POST", "/queue", {"delete": ["ID"]}),
            ("POST", "/queue?tenant=anna", {"delete": ["ID"]}),
            ("POST", "/interrupt", {"prompt_id": "ID"}),
            ("POST", "/interrupt?tenant=anna", {"prompt_id": "ID"}),
            ("POST", "/history", {"delete": ["ID"]}),
            ("GET", "/api/v2/jobs/ID", None),
            ("HEAD", "/api/v2/jobs/ID", None),
            ("GET", "/api/v2/jobs/ID?tenant=anna", None),
            ("GET", "/api/v2/jobs/ID/workflow", None),
            ("GET", "/api/v2/jobs/ID/events", None),
            ("POST", "/api/v2/jobs/ID/cancel", None),
            ("POST", "/api/v2/jobs/ID/cancel?tenant=anna", None),
        ):
            await same(method, path, body, each, NOBODYS)
    for asset, nobodys in ((world.asset, NOBODYS), (world.output, of_job(world.output, NOBODYS))):
        paths = ("ID", "ID/content", "ID/x", "ID?tenant=anna")
        for method, path in product(("GET", "HEAD", "POST", "DELETE"), paths):
            await same(method, f"/api/v2/assets/{path}", None, asset, nobodys)
        await same("POST", "/api/v2/jobs", {"workflow": load(reference("ID"))}, asset, nobodys)
    annas, nobodys = hash_of(png((1, 2, 3))), hash_of(png((2, 3, 4)))
    for method in ("HEAD", "GET"):
        await same(method, "/api/v2/assets/by-hash/ID", None, annas, nobodys)
    await same("POST", "/api/v2/assets/from-hash", {"hash": "ID", "file_path": "x.png"}, annas, nobodys)
    await same("POST", "/api/v2/jobs", {"workflow": load(reference(None, hash="ID"))}, annas, nobodys)
    for name in (f"{MARK}.png", f"{MARK}_00001_.png"):
        nobodys = name.replace("a", "x")
        for kind in ("input", "output", "temp"):
            for query in ({}, {"preview": "webp;90"}, {"channel": "a"}, {"subfolder": MARK}):
                path = "/view?filename=ID&" + urlencode({"type": kind, **query})
                for method in ("GET", "HEAD"):
                    await same(method, path, None, name, nobodys)
            await same("POST", "/prompt", {"prompt": load(f"ID [{kind}]")}, name, nobodys)
            await same("POST", "/prompt", {"prompt": load(f"{MARK}/ID [{kind}]")}, name, nobodys)
    await same("GET", "/userdata/ID", None, f"workflows/{MARK}.json", f"workflows/{MARK}.jsox")
    await same("DELETE", "/userdata/ID", None, f"workflows/{MARK}.json", f"workflows/{MARK}.jsox")
    await same("POST", "/userdata/ID/move/x", None, f"workflows/{MARK}.json", f"workflows/{MARK}.jsox")
    await same("GET", "/settings/ID", None, MARK, "nobody")
    # An id that is another's is free: it says 409 of none but one's own.
    assert (await ben.post("/prompt", {"prompt": slow(3, steps=1000, step_seconds=0.5), "prompt_id": world.failed}))[
        0
    ] == 200
    assert (await ben.post("/prompt", {"prompt": slow(4), "prompt_id": world.failed}))[0] == 409
    assert (await ben.post(f"/api/jobs/{world.failed}/cancel"))[1] == {"cancelled": True}
    # All of it is still there.
    queue = await world.anna.get("/queue")
    assert {world.running, world.pending} <= {item[1] for item in queue["queue_running"] + queue["queue_pending"]}
    assert set(await world.anna.get("/history")) == {world.ended, world.failed}
    assert await world.anna.get("/userdata", dir="workflows") == [f"{MARK}.json"]
    for each in (world.asset, world.output):
        assert colour((await ask(world.anna, "GET", f"/api/v2/assets/{each}/content")).body) == (1, 2, 3)


def of_job(output_id: str, job_id: str) -> str:
    """The id of an output of another job, made as that of this one."""
    digest = b64decode(output_id.removeprefix("out_") + "==", altchars=b"-_")[16:]
    made = "out_" + b64encode(UUID(job_id).bytes + digest, altchars=b"-_").decode().rstrip("=")
    assert job_of(made) == job_id
    return made


async def test_all_that_is_cleared_is_ones_own(lab: Lab) -> None:
    world = await world_of(lab, 1)
    for path, body in (
        ("/queue", {"clear": True}),
        ("/history", {"clear": True}),
        ("/interrupt", {}),
        ("/interrupt", {"prompt_id": ""}),
        ("/queue?tenant=anna", {"clear": True}),
        ("/history?tenant=anna", {"clear": True}),
    ):
        assert (await world.ben.post(path, body))[0] == 200
    assert await world.ben.get("/history") == {}

    async def both() -> bool:
        queue = await world.anna.get("/queue")
        shown = [[item[1] for item in queue[key]] for key in ("queue_running", "queue_pending")]
        # A prompt is shown as running once its client may know of it.
        assert sorted(shown[0] + shown[1]) == sorted([world.running, world.pending])
        return shown == [[world.running], [world.pending]]

    await until(both)
    assert set(await world.anna.get("/history")) == {world.ended, world.failed}


def texts(listener: Listener) -> bytes:
    """All that a socket heard."""
    return b"".join(e["raw"] if "raw" in e else json.dumps(e).encode() for e in listener.heard)


@pytest.mark.parametrize("count", [1, 3])
async def test_nothing_crosses_in_any_event(lab: Lab, count: int) -> None:
    """Each has a socket with the other's clientId, of every kind; Ben's hear of Ben's alone, also in previews."""
    simulators = await lab.simulators(count, "--cache-ram")
    gateway = await start(lab, *simulators)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    flags = {"supports_preview_metadata": True}
    bens = [
        await ben.listen("same"),
        await ben.listen("same", flags=flags),
        await ben.listen("same", "&events=interleave"),
        await ben.listen(""),
    ]
    annas = await anna.listen("same")
    ids = []
    for n in range(3):
        ids.append(await anna.prompt(marked(n, steps=8), "same"))
        await ben.prompt(slow(n + 100, steps=8, prefix="bens"), "same")
    ids.append(await anna.prompt(failing(MARK), "same"))
    # The same workflow as Anna's: its result comes from the cache, and is nothing but Ben's own then.
    mine = await ben.prompt(slow(5, steps=2, prefix="both"), "same")
    await anna.prompt(slow(5, steps=2, prefix="both"), "same")
    for prompt_id in ids:
        await annas.end_of(prompt_id)
    for listener in bens[:3]:
        await listener.end_of(mine)
    assert MARK.encode() in texts(annas)
    for listener in bens:
        heard = texts(listener)
        for mark in (MARK, *ids):
            assert mark.encode() not in heard
        counts = [e["data"]["status"]["exec_info"]["queue_remaining"] for e in listener.heard if e["type"] == "status"]
        assert max(counts, default=0) <= 4
    # Somebody who takes a clientId while its job runs is not told where that is.
    running = await anna.prompt(marked(9, steps=1000, step_seconds=0.5), "same")
    await annas.next("progress", prompt_id=running)
    late = await ben.listen("same")
    await late.silent()
    assert len(late.heard) == 1


def test_a_clientid_runs_into_no_tenants_name() -> None:
    """What is to be told to client "c" of tenant "a:b" is not told to client "b:c" of tenant "a"."""
    pairs = [("a:b", "c"), ("a", "b:c"), ("", "a:b:c"), ("a", ":b:c"), ("1:a", "c"), ("a", "1:a:c"), ("3:a:b", "c")]
    assert len({session_topic(*pair) for pair in pairs}) == len(pairs)


async def test_what_a_custom_node_tells_everybody_reaches_whose_job_runs(lab: Lab) -> None:
    """Events without a prompt_id, or with one that is nobody's; binary frames without one. While idle: nobody."""
    simulator = await lab.simulator()
    gateway = await start(lab, simulator)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    hears, other, team = await anna.listen("c"), await ben.listen("c"), await anna.listen("another")
    preview = Preview({"prompt_id": NOBODYS, "node_id": "1"}, "image/png", MARK.encode())
    nobodys = [
        {"type": "custom.nobodys", "data": {"prompt_id": NOBODYS, "text": MARK}},
        {"type": "executed", "data": {"prompt_id": NOBODYS, "node": "1", "output": {"text": [MARK]}}},
        {"type": "execution_success", "data": {"prompt_id": NOBODYS}},
        {"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 77}}, "text": MARK}},
        encode_with_metadata(preview),
        struct.pack(">II", 4, 2**31) + MARK.encode(),
    ]
    everybodys = [
        {"type": "custom.everybodys", "data": {"text": MARK}},
        {"type": "progress", "data": {"value": 1, "max": 2, "text": MARK}},
        struct.pack(">I", 3) + MARK.encode(),
        encode_legacy(preview),
    ]
    for message in (*nobodys, *everybodys):
        await broadcast(lab, simulator, message)
    for listener in (hears, other, team):
        await listener.silent(0.2)
    prompt_id = await anna.prompt(slow(1, steps=1000, step_seconds=0.5), "c")
    waiting = await ben.prompt(slow(2, steps=3), "c")
    await hears.next("progress", prompt_id=prompt_id)
    for message in (*nobodys, *everybodys):
        await broadcast(lab, simulator, message)
    await hears.next("custom.everybodys")
    await hears.next("binary 3")
    while MARK.encode() not in (await hears.next("binary 1"))["raw"]:
        pass
    assert not [event for event in hears.heard if event["type"] in ("custom.nobodys", "executed", "execution_success")]
    for listener in (other, team):
        assert MARK.encode() not in texts(listener)
    assert (await anna.post(f"/api/jobs/{prompt_id}/cancel"))[1] == {"cancelled": True}
    await other.end_of(waiting)
    assert MARK.encode() not in texts(other)
    assert MARK.encode() not in texts(team)


async def test_the_same_bytes_of_two_tenants_tell_neither_of_the_other(lab: Lab) -> None:
    """Both upload the same picture; what the gateway keeps once does not show, not by an ETag that answers for it."""
    gateway = await start(lab, *await lab.simulators(2))
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    await upload(anna, png((1, 2, 3)), "secret.png")
    path = "/view?filename=secret.png&type=input"
    seen = await ask(anna, "GET", path)
    etag = dict(seen.headers)["etag"]
    before = await ask(ben, "GET", path)
    for headers in ({}, {"If_None_Match": etag}, {"If_None_Match": "*"}, {"Range": "bytes=0-3"}, {"If_Match": etag}):
        assert await ask(ben, "GET", path, **headers) == before
        assert (await ask(ben, "HEAD", path, **headers)).status == 404
    assert await upload(ben, png((1, 2, 3)), "mine.png") == (
        200,
        {"name": "mine.png", "subfolder": "", "type": "input"},
    )
    assert await upload(ben, png((1, 2, 3)), "secret.png") == (
        200,
        {"name": "secret.png", "subfolder": "", "type": "input"},
    )
    info = await ben.get("/object_info/LoadImage")
    assert info["LoadImage"]["input"]["required"]["image"][0] == ["mine.png", "secret.png"]


async def test_object_info_is_each_ones_own(lab: Lab) -> None:
    """Not the other's uploads in its lists, and no ETag that says they are the same."""
    gateway = await start(lab, await lab.simulator())
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    await upload(anna, png((1, 2, 3)), f"{MARK}.png")
    mine = await ask(anna, "GET", "/object_info")
    assert MARK.encode() in mine.body
    etag = dict(mine.headers)["etag"]
    theirs = await ask(ben, "GET", "/object_info", If_None_Match=etag)
    assert theirs.status == 200
    assert MARK.encode() not in theirs.body


async def test_a_team_shares_and_others_do_not(lab: Lab) -> None:
    """`isolation: shared`: keys without a tenant see each other's; one with a tenant is kept apart, both ways."""
    simulator = await lab.simulator()
    gateway = await start(lab, simulator, isolation="shared", anonymous=True, tenants={"other": "customer"})
    anna, ben, other, guest = (caller(lab, gateway, name) for name in ("anna", "ben", "other", ""))
    hears = await ben.listen("c")
    prompt_id = await anna.prompt(slow(0x010203, prefix="team"), "c")
    await hears.end_of(prompt_id)
    (image,) = ben.images(await ben.entry(prompt_id))
    assert colour(await ben.view(image)) == (1, 2, 3)
    assert await ben.get("/userdata", dir=".") == []
    await upload(anna, png((1, 2, 3)), "ours.png")
    name = f"{image['filename']} [output]"
    for prompt in (load("ours.png"), load(name)):
        assert (await ben.post("/prompt", {"prompt": prompt}))[0] == 200
    theirs: list[tuple[Comfy, dict[str, str]]] = []
    for n, stranger in enumerate((other, guest)):
        assert await stranger.get("/history") == {}
        assert (await ask(stranger, "GET", "/view?" + urlencode(image))).status == 404
        for prompt in (load("ours.png"), load(name)):
            assert (await stranger.post("/prompt", {"prompt": prompt}))[0] == 400
        assert (await ask(stranger, "GET", "/api/assets")).status == 403
        mine = await stranger.prompt(slow(9, prefix=f"strangers{n}"))
        (picture,) = stranger.images(await stranger.entry(mine))
        await upload(stranger, png((4, 5, 6)), f"strangers{n}.png")
        theirs.append((stranger, picture))
    for n, (_, picture) in enumerate(theirs):
        for path in ("/view?", "/vhs/viewvideo?"):
            assert (await ask(anna, "GET", path + urlencode(picture))).status == 404, path
        assert (await ask(anna, "GET", f"/view?filename=strangers{n}.png&type=input")).status == 404
        for said in (f"{picture['filename']} [output]", f"strangers{n}.png"):
            assert (await anna.post("/prompt", {"prompt": load(said)}))[0] == 400
    # What is nobody's is the team's to see, as ever.
    alone = Comfy(lab.http, simulator.url)
    (nobodys,) = alone.images(await alone.entry(await alone.prompt(slow(0x0A0B0C, prefix="byhand"))))
    assert colour(await anna.view(nobodys)) == (10, 11, 12)
    assert (await ask(other, "GET", "/view?" + urlencode(nobodys))).status == 404


async def test_an_admin_sees_all_with_whose_it_is(lab: Lab) -> None:
    """And says whose, where two tenants have a job, or a file, of the same name."""
    world = await world_of(lab, 1)
    boss = world.boss
    mine = await boss.prompt(slow(7, steps=1))
    queue = await boss.get("/queue")
    assert {item[1]: item[3]["gateway_tenant"] for items in queue.values() for item in items} == {
        world.running: "anna",
        world.pending: "anna",
        mine: "boss",
    }
    history = await boss.get("/history")
    assert {key: entry["gateway_tenant"] for key, entry in history.items()} == {SHARED_ID: "ben", world.failed: "anna"}
    jobs = (await boss.get("/api/jobs"))["jobs"]
    assert sorted((job["id"], job["gateway_tenant"]) for job in jobs if job["id"] == SHARED_ID) == [
        (SHARED_ID, "anna"),
        (SHARED_ID, "ben"),
    ]
    seeds = {"anna": 0x010203, "ben": 0x070809}
    for tenant, seed in seeds.items():
        for path in (f"/history/{SHARED_ID}", "/history"):
            entry = (await boss.get(path, tenant=tenant))[SHARED_ID]
            assert entry["prompt"][2]["1"]["inputs"]["seed"] == seed
            assert entry["gateway_tenant"] == tenant
        job = await boss.get(f"/api/jobs/{SHARED_ID}", tenant=tenant)
        assert job["workflow"]["prompt"]["1"]["inputs"]["seed"] == seed
        async with lab.http.get(
            f"{boss.url}/view", params={"filename": "same.png", "type": "input", "tenant": tenant}, headers=boss.headers
        ) as answer:
            assert colour(await answer.read()) == ((1, 2, 3) if tenant == "anna" else (7, 8, 9))
    assert (await boss.post("/history?tenant=nobody", {"clear": True}))[0] == 404
    assert (await boss.post("/history?tenant=ben", {"delete": [SHARED_ID]}))[0] == 200
    assert SHARED_ID in await world.anna.get("/history")
    assert await world.ben.get("/history") == {}
    assert (await boss.post(f"/api/jobs/{world.running}/cancel?tenant=ben"))[1] == {"cancelled": False}
    assert (await boss.post(f"/api/jobs/{world.running}/cancel?tenant=anna"))[1] == {"cancelled": True}

    async def is_next() -> bool:
        queue = await world.anna.get("/queue")
        return [item[1] for item in queue["queue_running"]] == [world.pending]

    await until(is_next)


async def test_no_shared_cache_may_keep_what_is_somebodys(lab: Lab) -> None:
    """A cache before the gateway tells callers apart by nothing: the key is not in the URL."""
    gateway = await start(lab, await lab.simulator())
    anna = caller(lab, gateway, "anna")
    await upload(anna, png((1, 2, 3)), "mine.png")
    prompt_id = await anna.prompt(slow())
    (image,) = anna.images(await anna.entry(prompt_id))
    await anna.post("/userdata/a.json", {"a": 1})
    view = f"/view?{urlencode(image)}"
    paths = [
        view,
        f"{view}&preview=webp",
        f"{view}&channel=rgb",
        "/view?filename=mine.png&type=input",
        "/userdata/a.json",
    ]
    paths += [
        f"/vhs/viewvideo?{urlencode(image)}",
        "/queue",
        "/history",
        f"/history/{prompt_id}",
        "/api/jobs",
        "/settings",
    ]
    paths += ["/object_info", "/object_info/LoadImage", "/userdata?dir=.", "/v2/userdata", "/users", "/prompt"]
    for path in paths:
        for headers in ({}, {"Range": "bytes=0-3"}):
            seen = await ask(anna, "GET", path, **headers)
            told = dict(seen.headers).get("cache-control", "")
            assert "private" in told or "no-store" in told or seen.status == 404, (path, seen.headers)
            assert "public" not in told, path
    assert oct((lab.directory / "data").stat().st_mode)[-3:] == "700"
