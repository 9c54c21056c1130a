"""Outputs in object storage: they are there byte for byte, and nothing is lost or mixed up on the way."""

from __future__ import annotations

import asyncio
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from blake3 import blake3

from gateway.store.artifact_records import ArtifactRecord
from gateway.tenants.secret_names import holds_secret
from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab, until
from tests.support.pictures import png
from tests.support.raw_servers import start_raw_server
from tests.support.security_world import KEYS, ask, caller, start
from tests.support.stored import break_bucket, mend_bucket, objects, rows, spooled, storage, until_rows, until_stored
from tests.support.uploads import load, result, upload
from tests.support.workflows import slow

_KEY = re.compile(r"[0-9a-f]{32}/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/[0-9a-f]{32}\.png")


async def ran(comfy: Comfy, seed: int) -> tuple[dict[str, str], bytes]:
    """Run a prompt to its end. Return its picture, and the bytes of it."""
    prompt_id = await comfy.prompt(slow(seed=seed, steps=1))
    (image,) = comfy.images(await comfy.entry(prompt_id))
    return image, await comfy.view(image)


async def test_the_outputs_of_two_tenants_are_in_the_store(lab: Lab) -> None:
    """Byte for byte as /view shows them (`outputs.hide_names`), under keys without their names, a folder a tenant."""
    gateway = await start(lab, *await lab.simulators(2), **storage(lab), outputs__hide_names="true")
    users = {name: caller(lab, gateway, name) for name in ("anna", "ben")}
    names = ["anna", "ben", "anna", "ben", "anna"]
    shown = await asyncio.gather(*(ran(users[name], seed) for seed, name in enumerate(names)))
    found = await until_stored(gateway, 5)
    content = objects(lab)
    assert {each.key for each in found} == set(content)
    assert not any(holds_secret(data) for data in content.values())
    folders = dict[str, set[str]]()
    for each in found:
        assert _KEY.fullmatch(each.key), each.key
        assert (each.size, each.digest) == (len(content[each.key]), blake3(content[each.key]).hexdigest())
        folders.setdefault(each.tenant, set()).add(each.key[:32])
    for tenant in users:
        own = sorted(data for name, (_, data) in zip(names, shown, strict=True) if name == tenant)
        assert sorted(content[each.key] for each in found if each.tenant == tenant) == own
    assert [len(folder) for folder in folders.values()] == [1, 1]
    assert not folders["anna"] & folders["ben"]
    async with lab.http.get(f"{gateway.url}/metrics", headers={"X-API-Key": KEYS["monitor"]}) as answer:
        text = await answer.text()
    assert 'comfyui_gateway_storage_copies_total{outcome="stored"} 5.0' in text
    assert "comfyui_gateway_storage_up 1.0" in text
    assert spooled(lab) == []


async def test_before_means_that_the_copy_is_there_when_the_end_is_told(lab: Lab) -> None:
    """A repeat that ComfyUI's cache answers shows the same file, which is not copied again."""
    gateway = await lab.gateway(await lab.simulator("--cache-ram"), **storage(lab, when="before"))
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("me")
    prompt_id = await comfy.prompt(slow(steps=1), "me")
    await listener.end_of(prompt_id)
    (row,) = rows(gateway)
    assert (row.state, row.prompt_id) == ("stored", prompt_id)
    again = await comfy.entry(await comfy.prompt(slow(steps=1)))
    assert comfy.images(again) == comfy.images(await comfy.entry(prompt_id))
    assert (rows(gateway), list(objects(lab))) == ([row], [row.key])


async def test_a_store_that_says_nothing_delays_an_end_for_the_time_allowed_and_no_other_job(lab: Lab) -> None:
    held = asyncio.Event()

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        await held.wait()
        writer.close()

    async with await start_raw_server(swallow, "127.0.0.1", 0) as silent:
        endpoint = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
        settings: dict[str, Any] = {"url": "s3://bucket", "endpoint": endpoint, "allow_http": "true", "region": "x"}
        settings |= {"access_key_id": "key", "secret_access_key": "secret", "when": "before", "max_wait": 0.7}
        gateway = await lab.gateway(
            await lab.simulator(), **{f"storage__{name}": value for name, value in settings.items()}
        )
        comfy = Comfy(lab.http, gateway.url)
        saved = await comfy.prompt(slow(steps=1))
        previewed = await comfy.prompt(slow(steps=1, seed=2, save=False))
        await comfy.entry(previewed)
        assert await comfy.get(f"/history/{saved}") == {}, "its copy is awaited still"
        await comfy.entry(saved)
        (row,) = rows(gateway)
        assert (row.state, row.prompt_id) == ("pending", saved)
        held.set()


async def test_bytes_wait_on_the_disk_while_the_store_is_away_also_over_a_crash(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await start(lab, simulator, **storage(lab))
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")

    async def told(event: str) -> list[str]:
        return [line["event"] for line in gateway.log_lines() if line["event"] == event]

    break_bucket(lab)
    shown = [await ran(anna, 1)]
    await until_rows(gateway, lambda seen: [each.state for each in seen] == ["spooled"])
    assert await told("storage_unreachable") == ["storage_unreachable"]
    mend_bucket(lab)
    await until_stored(gateway, 1)
    assert await told("storage_back") == ["storage_back"]
    break_bucket(lab)
    shown += [await ran(comfy, seed) for seed, comfy in ((2, ben), (3, anna))]
    found = await until_rows(gateway, lambda seen: [each.state for each in seen] == ["stored", "spooled", "spooled"])
    assert {path.read_bytes() for path in spooled(lab)} == {data for _, data in shown[1:]}
    await simulator.kill()
    await gateway.kill()
    # A crash left a file without a row.
    stray = lab.directory / "data" / "artifacts" / "0f"
    stray.write_bytes(b"stray")
    mend_bucket(lab)
    await gateway.start()
    after = await until_stored(gateway, 3)
    assert {each.key: each.digest for each in after} == {each.key: each.digest for each in found}
    assert sorted(objects(lab).values()) == sorted(data for _, data in shown)

    async def is_empty() -> bool:
        return not spooled(lab)

    await until(is_empty)


async def test_a_full_spool_leaves_the_rest_on_the_backends(lab: Lab, tmp_path: Path) -> None:
    """They are stored later, over a crash of the gateway; but not what was written over meanwhile."""
    simulator = await lab.simulator("--base-dir", str(tmp_path / "comfy"))
    gateway = await start(lab, simulator, **storage(lab, max_spool="16B"))
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    break_bucket(lab)
    await ran(anna, 1)
    (path,) = (tmp_path / "comfy" / "output").rglob("*.png")
    _, data = await ran(ben, 2)

    async def is_told() -> bool:
        return any(line["event"] == "storage_spool_full" for line in gateway.log_lines())

    await until(is_told)
    await gateway.kill()
    assert ([each.state for each in rows(gateway)], spooled(lab)) == (["pending", "pending"], [])
    path.write_bytes(path.read_bytes() + b"other")
    mend_bucket(lab)
    await gateway.start()
    (row,) = await until_stored(gateway, 1)
    assert (row.tenant, objects(lab)) == ("ben", {row.key: data})
    (line,) = [line for line in gateway.log_lines() if line["event"] == "output_not_stored"]
    assert (line["tenant"], line["reason"]) == ("anna", f"backend '{row.backend}' has another file of its name")


async def test_a_backend_that_sends_no_file_or_an_endless_one_holds_up_nothing(lab: Lab) -> None:
    simulators = await lab.simulators(2)
    gateway = await start(lab, *simulators, **storage(lab, max_concurrency=2))
    anna = caller(lab, gateway, "anna")
    await simulators[0].fault(lab.http, "hold-view")
    for prompt_id in [await anna.prompt(slow(seed=seed, steps=1)) for seed in range(8)]:
        await anna.entry(prompt_id)

    def is_so(found: list[ArtifactRecord]) -> bool:
        states = {(each.backend, each.state) for each in found}
        return len(found) == 8 and states == {("b1", "pending"), ("b2", "stored")}

    seen = await until_rows(gateway, is_so)
    await simulators[0].fault(lab.http, "endless-view")
    await simulators[0].no_faults(lab.http, "hold-view")
    held = sum(each.backend == "b1" for each in seen)

    async def are_told() -> bool:
        told = [line for line in gateway.log_lines() if line["event"] == "output_not_stored"]
        return len(told) == held and all("bytes of the file" in line["reason"] for line in told)

    await until(are_told)
    left = await until_stored(gateway, 8 - held)
    assert set(objects(lab)) == {each.key for each in left}


async def test_a_stored_picture_and_one_that_counts_from_1_again_have_two_names(lab: Lab, tmp_path: Path) -> None:
    """For a tenant among strangers, and for a gateway without keys; over a restart, too."""
    simulator = await lab.simulator("--base-dir", str(tmp_path / "comfy"))
    for has_keys in (True, False):
        gateway = await (start(lab, simulator, **storage(lab)) if has_keys else lab.gateway(simulator, **storage(lab)))

        def user(gateway: GatewayProcess = gateway, has_keys: bool = has_keys) -> Comfy:
            return caller(lab, gateway, "anna") if has_keys else Comfy(lab.http, gateway.url)

        pictures = []
        for seed in (1, 2):
            pictures.append(await ran(user(), seed))
            await until_stored(gateway, seed)
            shutil.rmtree(tmp_path / "comfy" / "output")
            (tmp_path / "comfy" / "output").mkdir()
        (first, one), (second, other) = pictures
        assert first["filename"] == "ComfyUI_00001_.png"
        assert second["filename"] != first["filename"]
        await gateway.kill()
        await gateway.start()
        await lab.backends_up(gateway, 1)
        third, _ = await ran(user(), 3)
        found = await until_stored(gateway, 3)
        assert len({first["filename"], second["filename"], third["filename"]}) == 3
        content = objects(lab)
        assert [content[each.key] for each in found[:2]] == [one, other]
        assert [each.filename for each in found] == [each["filename"] for each in (first, second, third)]
        await gateway.stop()
        shutil.rmtree(lab.directory / "data")


async def test_what_its_owner_deletes_leaves_the_store(lab: Lab) -> None:
    """At once, or after a crash, as soon as the store is back."""
    gateway = await start(lab, await lab.simulator(), **storage(lab))
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    ids = [await anna.prompt(slow(seed=seed, steps=1)) for seed in (1, 2)]
    for prompt_id in ids:
        await anna.entry(prompt_id)
    _, kept = await ran(ben, 3)
    await until_stored(gateway, 3)

    async def delete(prompt_id: str) -> None:
        url = f"{gateway.url}/gateway/api/v1/me/jobs/{prompt_id}"
        async with lab.http.delete(url, headers={"X-API-Key": KEYS["anna"]}) as answer:
            assert answer.status == 200, await answer.text()

    await delete(ids[0])
    left = await until_stored(gateway, 2)
    assert set(objects(lab)) == {each.key for each in left}
    break_bucket(lab)
    await delete(ids[1])
    await until_rows(gateway, lambda seen: sorted(each.state for each in seen) == ["deleting", "stored"])
    await gateway.kill()
    mend_bucket(lab)
    await gateway.start()
    (row,) = await until_stored(gateway, 1)
    assert objects(lab) == {row.key: kept}


async def test_what_its_owner_deletes_while_its_copy_waits_goes_nowhere(lab: Lab) -> None:
    gateway = await start(lab, await lab.simulator(), **storage(lab, max_spool="16B"))
    break_bucket(lab)
    anna = caller(lab, gateway, "anna")
    prompt_id = await anna.prompt(slow(steps=1))
    await anna.entry(prompt_id)
    await until_rows(gateway, lambda seen: [each.state for each in seen] == ["pending"])
    url = f"{gateway.url}/gateway/api/v1/me/jobs/{prompt_id}"
    async with lab.http.delete(url, headers={"X-API-Key": KEYS["anna"]}) as answer:
        assert answer.status == 200, await answer.text()
    # The store is away still, so nothing but the deletion ends the copy.
    await until_rows(gateway, lambda seen: all(each.state == "deleting" for each in seen))


async def test_a_crash_at_any_time_loses_no_picture(lab: Lab) -> None:
    gateway = await lab.gateway(*await lab.simulators(2), **storage(lab, when="before"))
    comfy = Comfy(lab.http, gateway.url)
    ids = [await comfy.prompt(slow(seed=seed, steps=2, step_seconds=0.01)) for seed in range(12)]
    for count in (1, 5):

        async def has(count: int = count) -> bool:
            return len(objects(lab)) >= count

        await until(has)
        await gateway.kill()
        await gateway.start()
        await lab.backends_up(gateway, 2)
        comfy = Comfy(lab.http, gateway.url)
    entries = [await comfy.entry(prompt_id) for prompt_id in ids]
    shown = [await comfy.view(image) for entry in entries for image in comfy.images(entry)]
    found = await until_rows(gateway, lambda seen: len(seen) >= 12 and all(each.state == "stored" for each in seen))
    content = objects(lab)
    assert sorted(content[each.key] for each in found) == sorted(shown)


async def test_copies_go_with_the_history_if_that_is_wanted(lab: Lab) -> None:
    """The entries that their owner deletes, over a crash; nobody else's. Shared copies, without the prompt, too."""
    settings = storage(lab, delete_with_history="true", strip_metadata="true")
    gateway = await start(lab, await lab.simulator(), **settings)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    ids = {}
    for name, comfy in (("anna", anna), ("ben", ben), ("last", anna)):
        ids[name] = await comfy.prompt(slow(steps=1))
        await comfy.entry(ids[name])
    found = await until_stored(gateway, 3)
    content = objects(lab)
    assert len(content) == 6
    for each in found:
        assert b"SlowSampler" in content[each.key]
        assert content[each.shared_key].startswith(b"\x89PNG")
        assert b"SlowSampler" not in content[each.shared_key]
    assert (await anna.post("/history", {"delete": [ids["anna"], ids["ben"]]}))[0] == 200
    left = await until_stored(gateway, 2)
    assert {each.prompt_id for each in left} == {ids["ben"], ids["last"]}
    # A crash came between the end of the entry and that of its copies.
    await gateway.kill()
    with closing(sqlite3.connect(gateway.data_dir / "gateway.sqlite3")) as journal, journal:
        journal.execute("DELETE FROM history WHERE prompt_id=?", (ids["last"],))
    await gateway.start()
    (row,) = await until_stored(gateway, 1)
    assert set(objects(lab)) == {row.key, row.shared_key}
    assert row.tenant == "ben"


async def test_an_upload_is_there_also_when_the_gateway_has_it_no_more(lab: Lab) -> None:
    """With `storage.kinds`, once a job has named it; nobody else's, and not after its owner deleted the job with it."""
    kinds = storage(lab, kinds="output,uploads")
    one, other = png((1, 2, 3)), png((4, 5, 6))
    gateway = await start(lab, await lab.simulator(), **kinds, uploads__quota=f"{len(one) + 10}B")
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    await upload(anna, one, "photo.png")
    prompt_id = await anna.prompt(load("photo.png"))
    await anna.entry(prompt_id)
    found = await until_stored(gateway, 2)
    assert objects(lab)[next(each.key for each in found if each.kind == "input")] == one
    assert (await upload(ben, other, "other.png"))[0] == 200
    assert (await anna.get("/gateway/api/v1/me/uploads"))["uploads"] == [], "ben's upload took its room"
    await gateway.kill()
    await gateway.start()
    await lab.backends_up(gateway, 1)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    image = {"filename": "photo.png", "type": "input", "subfolder": ""}
    assert await anna.view(image) == one
    assert await result(anna, load("photo.png", "again")) == (1, 2, 3)
    assert (await ask(ben, "GET", f"/view?{urlencode(image)}")).status == 404
    url = f"{gateway.url}/gateway/api/v1/me/jobs/{prompt_id}?uploads=true"
    async with lab.http.delete(url, headers={"X-API-Key": KEYS["anna"]}) as answer:
        assert answer.status == 200, await answer.text()
    await until_rows(gateway, lambda seen: not any(each.kind == "input" for each in seen) and len(seen) == 1)
    assert (await ask(anna, "GET", f"/view?{urlencode(image)}")).status == 404
    assert one not in objects(lab).values()
