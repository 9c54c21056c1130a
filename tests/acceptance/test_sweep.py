"""`comfyui-gateway sweep` beside a backend: what it deletes there, and that nobody misses it."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.comfy_client import Comfy
from tests.support.commands import command
from tests.support.disk import full
from tests.support.keys_api import audit
from tests.support.lab import GatewayProcess, Lab, Simulator, until
from tests.support.pictures import png
from tests.support.saved_copies import made
from tests.support.security_world import KEYS, ask, caller, start
from tests.support.stored import rows, storage, until_rows, until_stored
from tests.support.sweeps import judged, reading, saved, sweep
from tests.support.uploads import brought, load, result, upload
from tests.support.workflows import slow

MINE, HERS = (40, 50, 60), (1, 2, 3)


async def begun(lab: Lab, base: Path, **settings: Any) -> tuple[GatewayProcess, Simulator]:
    """A gateway over one backend that keeps its files below `base`."""
    simulator = await lab.simulator("--base-dir", str(base))
    return await start(lab, simulator, **settings), simulator


async def statuses(comfy: Comfy, *images: dict[str, str]) -> list[int]:
    """What /view answers for each."""
    found = []
    for image in images:
        async with comfy.http.get(f"{comfy.url}/view", params=image, headers=comfy.headers) as answer:
            found.append(answer.status)
    return found


async def test_deleted_and_forgotten_files_go_and_all_others_stay(lab: Lab, tmp_path: Path) -> None:
    """Also a file by hand, and one that was changed since."""
    settings: dict[str, Any] = {"store__retention__max_files": 3, "storage__forgotten_after": 0.001}
    gateway, simulator = await begun(lab, tmp_path, **settings)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    (by_hand := tmp_path / "output" / "ComfyUI_00099_.png").write_bytes(b"by hand")
    await made(ben, slow(9, steps=1, prefix="bens"))
    deleted = await anna.prompt(slow(1, steps=1, prefix="deleted"))
    await anna.entry(deleted)
    assert (await ask(anna, "DELETE", f"/gateway/api/v1/me/jobs/{deleted}")).status == 200
    gone = [await made(anna, slow(n, steps=1)) for n in (2, 3, 4, 5)]
    changed = max(saved(tmp_path), key=lambda path: path.stat().st_mtime_ns)
    before = saved(tmp_path)
    assert len(before) == 7
    os.utime(changed, ns=(0, 10**18))
    expected = {"unknown": 1, "deleted": 1, "forgotten": 2, "not_stored": 2, "changed": 1}
    assert await sweep(gateway, tmp_path) == expected
    assert saved(tmp_path) == before
    first = audit(gateway, "backend_swept")
    await gateway.stop()
    gateway = await start(lab, simulator, **settings)
    assert await sweep(gateway, tmp_path, "--delete") == {**expected, "deleted now": 3}
    assert len(saved(tmp_path)) == 4
    assert {by_hand, changed} <= set(saved(tmp_path))
    assert await sweep(gateway, tmp_path, "--delete") == {"unknown": 1, "not_stored": 2, "changed": 1}
    assert await statuses(caller(lab, gateway, "anna"), gone[2]) == [200]
    lines = first + audit(gateway, "backend_swept")
    assert [(line["outcome"], line["files"], line["what"]) for line in lines] == [
        ("dry run", 3, "b1"),
        ("ok", 3, "b1"),
        ("ok", 0, "b1"),
    ]


async def test_an_unused_input_goes_and_is_put_there_again(lab: Lab, tmp_path: Path) -> None:
    """One that an open job reads stays, and one that was put there by hand."""
    gateway, _ = await begun(lab, tmp_path, storage__unused_after=0.001)
    anna = caller(lab, gateway, "anna")
    (tmp_path / "input" / "by_hand.png").write_bytes(png(HERS))
    await upload(anna, png(MINE), "pic.png")
    running = await anna.prompt(reading("pic.png"))
    await anna.running(running)
    assert await sweep(gateway, tmp_path, "--delete", kinds=("input",)) == {"unknown": 1, "in_use": 1}
    assert (await anna.post("/interrupt", {"prompt_id": running}))[0] == 200
    await anna.entry(running)
    for _ in range(2):
        unused = {"unknown": 1, "unused": 1}
        assert await sweep(gateway, tmp_path, kinds=("input",)) == unused
        assert await sweep(gateway, tmp_path, "--delete", kinds=("input",)) == {**unused, "deleted now": 1}
        assert brought(tmp_path, png(MINE)) == []
        assert await result(anna, load("pic.png")) == MINE
    assert brought(tmp_path, png(HERS)) == ["by_hand.png"]


async def test_a_prompt_names_no_input_that_a_sweep_may_delete_at_any_moment(lab: Lab, tmp_path: Path) -> None:
    """The bytes lie there still when the prompt is sent, and are gone before it runs."""
    gateway, _ = await begun(lab, tmp_path, storage__unused_after=0.001)
    anna, boss = caller(lab, gateway, "anna"), caller(lab, gateway, "boss")
    await upload(anna, png(MINE), "pic.png")
    assert await result(anna, load("pic.png")) == MINE
    (path,) = brought(tmp_path, png(MINE))
    assert await judged(boss, tmp_path, "input", path, delete=True) == "unused"
    before = await anna.prompt(slow(steps=1000))
    await anna.running(before)
    waits = await anna.prompt(load("pic.png", "waits"))
    assert len(brought(tmp_path, png(MINE))) == 2
    (tmp_path / "input" / path).unlink()
    assert (await anna.post("/interrupt", {"prompt_id": before}))[0] == 200
    entry = await anna.entry(waits)
    assert entry["status"]["status_str"] == "success"
    assert entry["prompt"][2] == load("pic.png", "waits")


async def test_what_an_open_job_names_stays(lab: Lab, tmp_path: Path) -> None:
    """A team's gateway lets a prompt read an output in its place, or by a path that leads to any folder."""
    gateway = await lab.gateway(
        await lab.simulator("--base-dir", str(tmp_path)), store__retention__max_files=1, storage__forgotten_after=0.001
    )
    comfy = Comfy(lab.http, gateway.url)
    (tmp_path / "output" / "a.png").write_bytes(png(MINE))
    for name in ("a.png [output]", "../output/a.png [input]"):
        running = await comfy.prompt(reading(name))
        await comfy.running(running)
        assert await judged(comfy, tmp_path, "output", "a.png") == "in_use", name
        assert (await comfy.post("/interrupt", {"prompt_id": running}))[0] == 200
        await comfy.entry(running)
        assert await judged(comfy, tmp_path, "output", "a.png") == "unknown"


async def test_a_stored_file_stays_until_the_journal_knows_its_copy(lab: Lab, tmp_path: Path) -> None:
    """A crash would forget the copy. No other copy is made before that."""
    gateway, simulator = await begun(lab, tmp_path, **storage(lab, max_concurrency=1))
    anna, boss = caller(lab, gateway, "anna"), caller(lab, gateway, "boss")
    await simulator.fault(lab.http, "hold-view")
    for number in range(2):
        await anna.entry(await anna.prompt(slow(number, steps=1)))
    path = saved(tmp_path)[0]
    name = str(path.relative_to(tmp_path / "output"))
    await until_rows(gateway, lambda seen: [each.state for each in seen] == ["pending"] * 2)
    with full(gateway.pid, 2048):
        # A prompt is refused, so the gateway knows that its disk is full.
        assert (await anna.post("/prompt", {"prompt": slow(3)}))[0] == 503
        await simulator.no_faults(lab.http)

        async def copies(lag: float = 0.0) -> float:
            told = await ask(caller(lab, gateway, "monitor"), "GET", "/metrics")
            seen = dict(line.rsplit(" ", 1) for line in told.body.decode().splitlines() if line.startswith("comfyui_"))
            is_late = float(seen["comfyui_gateway_journal_lag_seconds"]) >= lag
            return float(seen['comfyui_gateway_storage_copies_total{outcome="stored"}']) if is_late else 0.0

        assert await until(copies) == 1.0
        assert [each.state for each in rows(gateway)] == ["pending"] * 2
        assert await judged(boss, tmp_path, "output", name, delete=True) == "not_stored"
        assert await until(partial(copies, 0.5)) == 1.0
    await until_stored(gateway, 2)
    assert await judged(boss, tmp_path, "output", name, delete=True) == "stored"


async def test_the_command_and_the_route_refuse_what_they_can_not_do(lab: Lab, tmp_path: Path) -> None:
    gateway, _ = await begun(lab, tmp_path)
    anna, boss = caller(lab, gateway, "anna"), caller(lab, gateway, "boss")
    file = {"type": "output", "subfolder": "", "filename": "a.png", "size": 1, "mtime_ns": 1}
    path = "/gateway/api/v1/backends/b1/sweep"
    assert (await boss.post(path, {"files": [file] * 1000}))[1] == {"verdicts": ["unknown"] * 1000}
    odd = [{**file, "filename": name} for name in ("a\\b.png", "../a.png", "a/b.png", "", ".")]
    assert (await boss.post(path, {"files": odd}))[1] == {"verdicts": ["unknown"] * 5}
    for body in (
        {},
        {"files": [file] * 1001},
        {"files": ["a.png"]},
        {"files": [{**file, "type": "models"}]},
        {"files": [{**file, "size": -1}]},
        {"files": [{**file, "mtime_ns": 1.5}]},
        {"files": [{**file, "mtime_ns": 2**63}]},
        {"files": [file], "delete": "yes"},
    ):
        status, answer = await boss.post(path, body)
        assert (status, answer["error"]["type"]) == (400, "invalid_body"), body
    assert (await boss.post("/gateway/api/v1/backends/b2/sweep", {"files": []}))[0] == 404
    assert (await anna.post(path, {"files": []}))[0] == 403
    key = tmp_path / "key"
    key.write_text(KEYS["boss"] + "\n")
    sweeps: list[tuple[tuple[str, ...], int, str]] = [
        (("--key-file", str(key)), 0, ""),
        (("--key", KEYS["anna"]), 1, "admin"),
        ((), 1, "set COMFYUI_KEY"),
        (("--key", "x", "--key-file", str(key)), 2, "not both"),
    ]
    common = ("sweep", "--url", gateway.url, "--backend", "b1")
    (tmp_path / "output" / "a.png").write_bytes(b"")
    for options, code, words in sweeps:
        told = await command(*common, "--output-dir", str(tmp_path / "output"), *options, cwd=tmp_path)
        assert (told[0], words in told[2]) == (code, True), told
    assert (
        "unknown  1      0"
        in (await command(*common, "--output-dir", str(tmp_path / "output"), "--key-file", str(key), cwd=tmp_path))[1]
    )
    assert (await command(*common, cwd=tmp_path))[0] == 2
    missing = await command(*common, "--output-dir", str(tmp_path / "none"), cwd=tmp_path)
    assert missing[0] == 2
