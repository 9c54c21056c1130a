"""An owner deletes a job and its uploads: nobody finds them again, though backends have the bytes still."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab, until
from tests.support.pictures import colour, png
from tests.support.security_world import ask, caller, files_below, start
from tests.support.tenancy import caller as tenant_of
from tests.support.tenancy import serve, write_config
from tests.support.uploads import load, upload
from tests.support.workflows import slow

ME = "/gateway/api/v1/me"
UPLOAD = {"filename": "photo.png", "type": "input"}


def reading(names: list[str]) -> dict[str, Any]:
    """A prompt that loads these files, and goes on until it is stopped."""
    prompt = slow(steps=1000, step_seconds=0.05)
    for place, name in enumerate(names):
        prompt[f"load{place}"] = {"class_type": "LoadImage", "inputs": {"image": name}}
        prompt[f"save{place}"] = {
            "class_type": "SaveImage",
            "inputs": {"images": [f"load{place}", 0], "filename_prefix": f"read{place}"},
        }
    return prompt


async def delete(comfy: Comfy, path: str, **query: str) -> tuple[int, Any]:
    """DELETE below /me; (status, JSON)."""
    seen = await ask(comfy, "DELETE", f"{ME}{path}?{urlencode(query)}")
    return seen.status, json.loads(seen.body)


async def viewed(comfy: Comfy, *images: dict[str, str]) -> list[int]:
    """What /view answers for each."""
    return [(await ask(comfy, "GET", f"/view?{urlencode(image)}")).status for image in images]


async def ran(comfy: Comfy, prompt: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """A prompt that has ended: its id, and its picture."""
    prompt_id = await comfy.prompt(prompt)
    (image,) = comfy.images(await comfy.entry(prompt_id))
    return prompt_id, image


def journalled(gateway: GatewayProcess) -> sqlite3.Connection:
    """The journal of a gateway."""
    return sqlite3.connect(gateway.data_dir / "gateway.sqlite3")


def kept(lab: Lab) -> list[Path]:
    """The bytes of uploads in the data directory, wherever they lie."""
    return [path for path, content in files_below(lab.directory / "data" / "uploads") if content.startswith(b"\x89PNG")]


async def is_gone(comfy: Comfy, prompt_id: str, image: dict[str, str]) -> None:
    """Assert that a job, its picture and its upload are nowhere."""
    assert await comfy.get("/history") == {}
    assert await comfy.get(f"/history/{prompt_id}") == {}
    assert (await comfy.get("/api/jobs"))["jobs"] == []
    assert (await ask(comfy, "GET", f"/api/jobs/{prompt_id}")).status == 404
    assert await viewed(comfy, image, UPLOAD) == [404, 404]
    info = await comfy.get("/object_info/LoadImage")
    assert "photo.png" not in info["LoadImage"]["input"]["required"]["image"][0]
    assert (await comfy.get(f"{ME}/uploads"))["uploads"] == []
    for name in ("photo.png", f"{image['filename']} [output]", "../input/photo.png"):
        status, answer = await comfy.post("/prompt", {"prompt": load(name, "again")})
        assert (status, answer["error"]["type"]) == (400, "prompt_outputs_failed_validation"), name
        assert answer["node_errors"]["1"]["errors"], "as for a file that never was"


async def test_a_job_and_its_upload_are_nowhere_after_their_deletion(lab: Lab, tmp_path: Path) -> None:
    simulator = await lab.simulator("--base-dir", str(tmp_path))
    gateway = await start(lab, simulator)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    await upload(anna, png((1, 2, 3)), "photo.png")
    prompt_id, image = await ran(anna, load("photo.png"))
    assert await viewed(anna, image, UPLOAD) == [200, 200]
    assert await delete(ben, f"/jobs/{prompt_id}") == await delete(ben, "/jobs/nobodys")
    # An open job can't be deleted, and neither can what it names.
    open_id = await anna.prompt(reading(["photo.png", f"{image['filename']} [output]"]))
    assert await delete(ben, f"/jobs/{open_id}") == await delete(ben, "/jobs/nobodys")
    for path, query, error in (
        (f"/jobs/{open_id}", {}, "job_open"),
        (f"/jobs/{prompt_id}", {}, "file_in_use"),
        ("/uploads", {"filename": "photo.png"}, "file_in_use"),
    ):
        status, answer = await delete(anna, path, **query)
        assert (status, answer["error"]["type"]) == (409, error), answer
    await anna.post(f"/api/jobs/{open_id}/cancel")

    async def ended() -> bool:
        return not (await anna.get("/prompt"))["exec_info"]["queue_remaining"]

    await until(ended)
    await delete(anna, f"/jobs/{open_id}")
    answer = await delete(anna, f"/jobs/{prompt_id}", uploads="true")
    assert answer == (200, {"deleted": prompt_id, "files": 1, "uploads": ["photo.png"]})
    await is_gone(anna, prompt_id, image)
    assert kept(lab) == []
    assert any(path.suffix == ".png" for path, _ in files_below(tmp_path)), "a backend keeps the bytes"
    await gateway.kill()
    gateway = await start(lab, simulator)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    await is_gone(anna, prompt_id, image)
    assert await viewed(ben, image, UPLOAD) == [404, 404]
    assert (await delete(anna, f"/jobs/{prompt_id}"))[0] == 404
    # The id is free, and the name is: both mean what is new.
    await upload(anna, png((7, 7, 7)), "photo.png")
    assert await anna.prompt(load("photo.png"), prompt_id=prompt_id) == prompt_id
    (image,) = anna.images(await anna.entry(prompt_id))
    assert colour(await anna.view(image)) == (7, 7, 7)


async def test_without_keys_a_deleted_file_is_not_looked_for_on_the_fleet(lab: Lab, tmp_path: Path) -> None:
    """Everybody is an admin there, and an admin sees what is nobody's. Another file under the name is seen."""
    base = tmp_path / "base"
    simulator = await lab.simulator("--base-dir", str(base), "--cache-ram")
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    await upload(comfy, png((1, 2, 3)), "photo.png")
    prompt_id, image = await ran(comfy, load("photo.png"))
    assert (await delete(comfy, f"/jobs/{prompt_id}", uploads="true"))[0] == 200
    for _ in range(2):
        assert (base / "output" / image["filename"]).is_file()
        assert (base / "input" / "photo.png").is_file()
        await is_gone(comfy, prompt_id, image)
        named = f"filename=../output/{image['filename']}&type=path"
        async with lab.http.get(f"{gateway.url}/viewvideo?{named}") as answer:
            assert (answer.status, answer.content_type) == (404, "application/json")
        assert await comfy.get("/internal/files/output") == await comfy.get("/internal/files/input") == []
        await gateway.kill()
        gateway = await lab.gateway(simulator)
        comfy = Comfy(lab.http, gateway.url)
    # A repeat that comes from the cache is a job of its own, with the file; and it can be deleted as well.
    await upload(comfy, png((1, 2, 3)), "photo.png")
    again, same = await ran(comfy, load("photo.png"))
    assert same == image
    assert await viewed(comfy, same) == [200]
    assert (await delete(comfy, f"/jobs/{again}"))[1]["files"] == 1
    assert await viewed(comfy, same, UPLOAD) == [404, 200]
    shutil.rmtree(base / "output")
    (base / "output").mkdir()
    _, new = await ran(comfy, slow(9, steps=1, prefix=image["filename"].partition("_")[0]))
    assert new == image
    assert await viewed(comfy, image) == [200]
    with closing(journalled(gateway)) as journal:
        assert journal.execute("SELECT filename FROM deleted WHERE kind='output'").fetchall() == []
    # Paths that lead out of their folder are looked up, and no more of them than that takes little time.
    (base / "input" / "other.png").write_bytes(png((6, 6, 6)))
    for count, length, expected in ((100, 1, 200), (101, 1, 400), (18, 110, 400)):
        names = [f"../input/{'./' * n * length}other.png" for n in range(count)]
        many = {f"load{n}": {"class_type": "LoadImage", "inputs": {"image": name}} for n, name in enumerate(names)}
        saved = {"class_type": "SaveImage", "inputs": {"images": ["load0", 0], "filename_prefix": "many"}}
        status, sent = await comfy.post("/prompt", {"prompt": {**many, "save": saved}})
        assert status == expected, sent
        if status == 200:
            await comfy.entry(sent["prompt_id"])


async def test_nobody_else_gets_a_deleted_file(lab: Lab, tmp_path: Path) -> None:
    """Two tenants of a dedicated backend have no secret folders, and ComfyUI's cache answers both."""
    base = tmp_path / "base"
    simulator = await lab.simulator("--base-dir", str(base), "--cache-ram")
    config = write_config(lab, [simulator], {}, {}, dedicated={"b1": ["anna", "ben", "boss"]})
    gateway = await serve(lab, config, 1)
    anna, ben, boss = (tenant_of(lab, gateway, name) for name in ("anna", "ben", "boss"))
    prompt_id, image = await ran(anna, slow(5, steps=1))
    later, same = await ran(boss, slow(5, steps=1))
    assert same == image
    # A job that repeats the first one from the cache, and reads its file: its backend gets a copy of that.
    both = slow(5, steps=1) | {"3": {"class_type": "LoadImage", "inputs": {"image": f"{image['filename']} [output]"}}}
    both["4"] = {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "read"}}
    # An earlier copy has the name already.
    (base / "output" / image["filename"].replace(".png", "~b1.png")).write_bytes(png((9, 9, 9)))
    listed = anna.images(await anna.entry(await anna.prompt(both)))
    copy = {**image, "filename": image["filename"].replace(".png", "~b1 (1).png")}
    assert (image in listed, await viewed(boss, copy)) == (True, [200])
    assert (await delete(anna, f"/jobs/{prompt_id}"))[0] == 200
    assert await viewed(boss, copy) == [404]
    assert sorted(await viewed(anna, *listed)) == [200, 404], "the other job keeps what it alone has made"
    _, repeated = await ran(ben, slow(5, steps=1))
    assert (base / "output" / image["filename"]).is_file()
    assert await viewed(ben, image, repeated) == [404, 404]
    assert await viewed(anna, image) == [404]
    # An admin whose own job lists the same file keeps it.
    assert await viewed(boss, image) == [200]
    assert (await delete(boss, f"/jobs/{later}"))[0] == 200
    assert await viewed(boss, image, {**image, "tenant": "anna"}) == [404, 404]


async def test_a_team_does_not_find_what_was_deleted(lab: Lab, tmp_path: Path) -> None:
    gateway = await start(lab, await lab.simulator("--base-dir", str(tmp_path)), isolation="shared")
    mate, anna = caller(lab, gateway, "mate"), caller(lab, gateway, "anna")
    prompt_id, image = await ran(mate, slow(5, steps=1))
    assert await viewed(anna, image) == [200]
    assert (await delete(anna, f"/jobs/{prompt_id}"))[0] == 200
    assert (tmp_path / "output" / image["filename"]).is_file()
    other = {**image, "filename": image["filename"].upper()}
    assert await viewed(mate, image, other) == [404, 404]
    assert (await mate.post("/prompt", {"prompt": load(f"{image['filename']} [output]")}))[0] == 400


async def test_uploads_are_listed_in_pages_and_deleted_by_name(lab: Lab) -> None:
    gateway = await start(lab, await lab.simulator())
    anna, ben, boss = (caller(lab, gateway, name) for name in ("anna", "ben", "boss"))
    brought: dict[str, dict[str, str]] = {"b.png": {}, "a.png": {"subfolder": "x"}, "t.png": {"type": "temp"}}
    for place, (name, fields) in enumerate(brought.items()):
        assert (await upload(anna, png((place, 0, 0)), name, **fields))[0] == 200
    # Two names of one upload's bytes.
    assert (await upload(anna, png((0, 0, 0)), "c.png"))[0] == 200
    first = await anna.get(f"{ME}/uploads", limit="3")
    assert [(each["type"], each["subfolder"], each["name"]) for each in first["uploads"]] == [
        ("input", "", "b.png"),
        ("input", "", "c.png"),
        ("input", "x", "a.png"),
    ]
    rest = await anna.get(f"{ME}/uploads", limit="3", after=first["next"])
    assert ([each["name"] for each in rest["uploads"]], "next" in rest) == (["t.png"], False)
    (shown,) = rest["uploads"]
    assert shown["bytes"] == len(png((2, 0, 0)))
    assert shown["used_at"] >= shown["uploaded_at"] > 10**12
    assert (await ben.get(f"{ME}/uploads"))["uploads"] == []
    blobs = len(kept(lab))
    assert (await delete(ben, "/uploads", filename="b.png"))[0] == 404
    assert await delete(anna, "/uploads", filename="b.png") == (
        200,
        {"deleted": {"name": "b.png", "subfolder": "", "type": "input"}},
    )
    assert len(kept(lab)) == blobs == 3, "another name has the bytes"
    assert (await delete(anna, "/uploads", filename="c.png"))[0] == 200
    assert len(kept(lab)) == 2
    assert (await delete(anna, "/uploads", filename="t.png"))[0] == 404
    assert (await delete(anna, "/uploads", filename="../t.png", type="temp"))[0] == 400
    assert (await delete(anna, "/uploads", filename="t.png", type="temp"))[0] == 200
    # An admin acts for a tenant, and the audit log says so.
    assert (await delete(boss, "/uploads", filename="a.png", subfolder="x", tenant="anna"))[0] == 200
    assert (await anna.get(f"{ME}/uploads"))["uploads"] == []
    prompt_id, _ = await ran(anna, slow(1, steps=1))
    assert (await delete(boss, f"/jobs/{prompt_id}", tenant="anna"))[0] == 200
    audited = [(line["action"], line["what"], line["whose"]) for line in gateway.log_lines() if "whose" in line]
    assert audited == [("upload_deleted", "x/a.png", "anna"), ("job_deleted", prompt_id, "anna")]


async def test_uploads_are_forgotten_when_their_jobs_have_ended(lab: Lab) -> None:
    simulator = await lab.simulator()
    other = await lab.simulator()
    gateway = await start(lab, simulator, other, uploads__after_job="forget")
    anna = caller(lab, gateway, "anna")

    async def names() -> list[str]:
        return [each["name"] for each in (await anna.get(f"{ME}/uploads"))["uploads"]]

    for place, name in enumerate(("a.png", "b.png", "never.png")):
        await upload(anna, png((place, 0, 0)), name)
    waits = await anna.prompt(reading(["b.png", "never.png"]))
    await anna.running(waits)
    others = load("a.png") | {"3": {"class_type": "LoadImage", "inputs": {"image": "b.png"}}}
    others["4"] = {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "b"}}
    done = await anna.prompt(others)

    async def are(*wanted: str) -> None:
        async def look() -> bool:
            return await names() == list(wanted)

        await until(look, what=str(wanted))

    await anna.entry(done)
    await are("b.png", "never.png")
    # Brought again while the job runs: another prompt is to come.
    await upload(anna, png((2, 0, 0)), "never.png")
    await anna.post(f"/api/jobs/{waits}/cancel")
    await are("never.png")

    async def blobs_are(count: int) -> None:
        async def look() -> bool:
            return len(kept(lab)) == count

        await until(look, what=f"{count} blobs")

    await blobs_are(1)
    # A crash between the end of a job and the deletion: the next start does what is left.
    await upload(anna, png((5, 0, 0)), "late.png")
    brought = {each["name"]: each["uploaded_at"] for each in (await anna.get(f"{ME}/uploads"))["uploads"]}
    await gateway.kill()
    with closing(journalled(gateway)) as journal, journal:
        rows = journal.execute("SELECT filename, brought_at, ended FROM uploads").fetchall()
        assert sorted(rows) == [("late.png", brought["late.png"], 0), ("never.png", brought["never.png"], 0)]
        journal.execute("UPDATE uploads SET ended=1 WHERE filename='late.png'")
        journal.execute("DELETE FROM uploads WHERE filename='never.png'")
        (left,) = (path for path in kept(lab) if path.read_bytes() == png((2, 0, 0)))
        journal.execute("INSERT INTO deleted VALUES ('', 'upload', '', ?, '', '', 1)", (left.name,))
    gateway = await start(lab, simulator, other, uploads__after_job="forget")
    anna = caller(lab, gateway, "anna")
    await are()
    await blobs_are(0)
