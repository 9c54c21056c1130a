"""Files in object storage: they outlive their backend, for their owner alone, and links to them leak nowhere."""

from __future__ import annotations

import io
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
from PIL import Image
from yarl import URL

from gateway.artifacts.links import OWN_PATH, OwnLinks
from gateway.simulator.nodes import seed_colour
from gateway.tenants.secret_names import SecretNames
from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab, Simulator, until
from tests.support.pictures import colour
from tests.support.security_world import files_below
from tests.support.tenancy import BOSS, caller, serve, write_config
from tests.support.uploads import upload
from tests.support.webhook_receiver import LOCAL, receiver
from tests.support.workflows import slow

# The headers of a browser that shows a picture on a page of another site.
ELSEWHERE = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Referer": "https://other.example/"}


def stored_at(lab: Lab) -> Path:
    """The folder that is the object store."""
    return lab.directory / "store"


async def start(
    lab: Lab, simulators: list[Simulator], dedicated: dict[str, list[str]] | None = None, **storage: Any
) -> GatewayProcess:
    """Start a gateway that stores outputs in a folder before it tells a job's end."""
    told = {"url": f"file://{stored_at(lab)}", "when": "before", **storage}
    config = write_config(lab, simulators, {}, {}, dedicated=dedicated, storage=told)
    return await serve(lab, config, len(simulators), **LOCAL)


def loading(image: str) -> dict[str, Any]:
    """A prompt that reads an output and saves it again."""
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": f"{image} [output]"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "again"}},
    }


async def made(comfy: Comfy, *seeds: int, prefix: str) -> dict[str, tuple[dict[str, str], bytes]]:
    """Run prompts at once. Return each image and its bytes, by prompt_id."""
    ids = [await comfy.prompt(slow(seed, steps=2, prefix=prefix)) for seed in seeds]
    found = {}
    for prompt_id, seed in zip(ids, seeds, strict=True):
        (image,) = comfy.images(await comfy.entry(prompt_id))
        found[prompt_id] = image, await comfy.view(image)
        assert colour(found[prompt_id][1]) == seed_colour(seed)
    return found


async def asked(comfy: Comfy, image: dict[str, str], method: str = "GET", **headers: str) -> tuple[int, Any, bytes]:
    """Ask for a file: (status, headers, body)."""
    sent = {**comfy.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
    url = f"{comfy.url}/view"
    async with comfy.http.request(method, url, params=image, headers=sent, allow_redirects=False) as answer:
        return answer.status, answer.headers, await answer.read()


async def check_copies(
    lab: Lab, gateway: GatewayProcess, base: Path, annas: dict[str, tuple[dict[str, str], bytes]]
) -> None:
    """Assert that anna's copies on a backend have names that nobody can guess, and are deleted with their jobs."""
    anna, boss = caller(lab, gateway, "anna"), caller(lab, gateway, BOSS)
    folders = {path.relative_to(base / "output").parts[0] for path, _ in files_below(base / "output")}
    assert folders == {"o", "u"}
    copies = [path.relative_to(base / "output") for path, _ in files_below(base / "output" / "u")]
    names = [{"filename": each.name, "subfolder": str(each.parent), "type": "output"} for each in copies]
    assert [(await asked(boss, each))[0] for each in names] == [200] * len(annas)
    gone = next(iter(annas))
    async with lab.http.delete(f"{gateway.url}/gateway/api/v1/me/jobs/{gone}", headers=anna.headers) as answer:
        assert answer.status == 200
    image, _ = annas.pop(gone)
    assert (await asked(anna, image))[0] == 404
    # Not even an admin finds the copy.
    assert sorted([(await asked(boss, each))[0] for each in names]) == [200] * len(annas) + [404]


async def test_images_outlive_their_backend_for_their_owner_alone(lab: Lab) -> None:
    bases = [lab.directory / f"base{n}" for n in (1, 2)]
    simulators = [await lab.simulator("--base-dir", str(base)) for base in bases]
    gateway = await start(lab, simulators)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    annas = await made(anna, 0x102030, 0x203040, 0x304050, 0x405060, prefix="annas")
    bens = await made(ben, 0x708090, 0x8090A0, prefix="bens")
    backends = {(await caller(lab, gateway, BOSS).get(f"/api/jobs/{each}"))["gateway_backend"] for each in annas}
    assert backends == {"b1", "b2"}
    await simulators[0].kill()
    await lab.backends_up(gateway, 1)

    async def check(gateway: GatewayProcess) -> None:
        anna, ben, boss = (caller(lab, gateway, name) for name in ("anna", "ben", BOSS))
        for owner, other, own in ((anna, ben, annas), (ben, anna, bens)):
            for image, data in own.values():
                assert await owner.view(image) == data
                assert await boss.view(image) == data
                unknown = await asked(other, {**image, "filename": "unknown_00001_.png"})
                assert (await asked(other, image))[0] == unknown[0] == 404
                assert (await asked(other, image))[2] == unknown[2]

    await check(gateway)
    for image, data in annas.values():
        status, headers, body = await asked(anna, image, Range="bytes=5-9")
        assert (status, body, headers["Content-Range"]) == (206, data[5:10], f"bytes 5-9/{len(data)}")
        assert headers["Content-Type"] == "image/png"
        assert headers["Content-Security-Policy"] == "sandbox"
        etag = headers["ETag"]
        assert (await asked(anna, image, If_None_Match=etag))[0] == 304
        assert (await asked(anna, image, Range="bytes=5-9", If_Range='"other"'))[2] == data
        status, headers, body = await asked(anna, image, "HEAD")
        assert (status, int(headers["Content-Length"]), body) == (200, len(data), b"")
        # The backend that is left converts, and reads.
        status, headers, body = await asked(anna, {**image, "preview": "jpeg;90"})
        assert (status, headers["Content-Type"]) == (200, "image/jpeg")
        assert (await asked(ben, {**image, "preview": "jpeg;90"}))[0] == 404
        assert (await asked(caller(lab, gateway, BOSS), {**image, "preview": "jpeg;90"}))[2] == body
        status, answer = await ben.post("/prompt", {"prompt": loading(image["filename"])})
        assert status == 400, answer
    for image, data in annas.values():
        (again,) = anna.images(await anna.entry(await anna.prompt(loading(image["filename"]))))
        assert colour(await anna.view(again)) == colour(data)
    ref, mask = json.dumps(image), io.BytesIO()
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(mask, "PNG")
    for comfy, status in ((anna, 200), (ben, 404)):
        answer = await upload(comfy, mask.getvalue(), "masked.png", "mask", original_ref=ref)
        assert answer == (200, {"name": "masked.png", "subfolder": "", "type": "input"})
        assert (await asked(comfy, {"filename": "masked.png", "type": "input"}))[0] == status
    await check_copies(lab, gateway, bases[1], annas)
    # A backend that is configured no more, or is dedicated to others by now, takes nothing with it: b2, and b1.
    await gateway.stop()
    gateway = await start(lab, simulators[1:], {"b1": ["ben"]})
    assert "are known on b2, which is not configured" not in gateway.log.read_text()
    await check(gateway)
    image, _ = next(iter(annas.values()))
    assert (await asked(caller(lab, gateway, "anna"), {**image, "channel": "rgb"}))[0] == 503


def own_links(gateway: GatewayProcess) -> OwnLinks:
    """Links that the gateway would sign, by the secret in its journal."""
    with closing(sqlite3.connect(f"file:{gateway.data_dir / 'gateway.sqlite3'}?mode=ro", uri=True)) as journal:
        ((key,),) = journal.execute("SELECT value FROM meta WHERE key = 'names_key'")
        return OwnLinks(SecretNames(bytes.fromhex(key)).link_key())


def texts(data: bytes) -> set[str]:
    """The keywords of a picture's texts."""
    with Image.open(io.BytesIO(data)) as picture:
        return set(picture.info) - {"dpi"}


async def fetched(http: aiohttp.ClientSession, url: str, **headers: str) -> tuple[int, bytes]:
    """Follow a link, without a key."""
    async with http.get(URL(url, encoded=True), headers=headers) as answer:
        return answer.status, await answer.read()


async def test_links_let_in_whoever_has_them_and_nobody_else(lab: Lab) -> None:
    async with receiver() as hook:
        simulators = await lab.simulators(1)
        gateway = await start(lab, simulators, links="signed")
        anna, ben, boss = (caller(lab, gateway, name) for name in ("anna", "ben", BOSS))
        hers = {"webhook": {"url": f"{hook.url}/anna"}}
        prompt_id = await anna.prompt(slow(0x112233, prefix="annas"), extra_data=hers)
        bens = await made(ben, 0x445566, prefix="annas")
        entry = await anna.entry(prompt_id)
        (image,) = anna.images(entry)
        data = await anna.view(image)
        (told,) = entry["gateway_files"]
        assert {name: told[name] for name in ("filename", "subfolder", "type")} == image
        assert told["size"] == len(data)
        for path, find in (
            (f"/history/{prompt_id}", lambda answer: answer[prompt_id]),
            ("/history", lambda answer: answer[prompt_id]),
            (f"/api/jobs/{prompt_id}", lambda answer: answer),
        ):
            for who in (anna, boss):
                assert find(await who.get(path))["gateway_files"] == [told]
            assert told["url"] not in json.dumps(await ben.get("/history"))
        ((bens_id, (bens_image, bens_data)),) = bens.items()
        (bens_told,) = (await ben.get(f"/history/{bens_id}"))[bens_id]["gateway_files"]
        assert bens_image == image
        for each, content in ((told, data), (bens_told, bens_data)):
            assert await fetched(lab.http, gateway.url + each["url"]) == (200, content)
            assert await fetched(lab.http, gateway.url + each["url"], Range="bytes=1-3") == (206, content[1:4])
            async with lab.http.head(gateway.url + each["url"]) as answer:
                assert answer.headers["Cache-Control"] == "private, no-cache"
            # Any page may show it.
            assert (await fetched(lab.http, gateway.url + each["url"], **ELSEWHERE))[0] == 200
        assert (await fetched(lab.http, f"{gateway.url}/view?filename=a.png", **ELSEWHERE))[0] == 403
        (event,) = await hook.events(1)
        (output,) = event.event["data"]["outputs"]
        assert await fetched(lab.http, gateway.url + output["stored_url"]) == (200, data)
        # Changed links, links of another object, links that have ended, and such that another gateway signed.
        path, own = urlsplit(told["url"]).path, parse_qs(urlsplit(told["url"]).query)
        key, expires, signature = path.removeprefix(OWN_PATH), own["expires"][0], own["signature"][0]
        mine = own_links(gateway)
        assert mine.url(key, int(expires)) == told["url"]
        for url, status in (
            (mine.url(key, 1_700_000_000), 403),
            (OwnLinks(bytes(32)).url(key, int(expires)), 403),
            (f"{path}?expires={int(expires) + 1}&signature={signature}", 403),
            (f"{urlsplit(bens_told['url']).path}?expires={expires}&signature={signature}", 403),
            (f"{path}?signature={signature}", 403),
            (path, 403),
            (mine.url(key[:-5] + "x.png", int(expires)), 404),
        ):
            assert (await fetched(lab.http, gateway.url + url))[0] == status, url
        # Only who asks is sent there, and only to an own file.
        assert (await asked(anna, image))[0] == 200
        status, headers, _ = await asked(anna, {**image, "redirect": "1"})
        assert (status, headers["Cache-Control"]) == (302, "no-store")
        assert await fetched(lab.http, gateway.url + headers["Location"]) == (200, data)
        assert (await asked(anna, {**image, "redirect": "1"}, "HEAD"))[0] == 200
        assert (await asked(ben, {**image, "filename": "annas_00009_.png", "redirect": "1"}))[0] == 404
        # If somebody empties the store, the backend still has the file.
        stored_at(lab).rename(lab.directory / "aside")
        stored_at(lab).mkdir()
        assert (await fetched(lab.http, gateway.url + told["url"]))[0] == 404
        assert (await asked(anna, image))[2] == data
        # If its backend is away as well, it may come back with the file.
        for simulator in simulators:
            await simulator.kill()
        status, _, body = await asked(anna, image)
        assert (status, json.loads(body)["error"]["type"]) == (503, "owner_unavailable")
        await gateway.stop()
        signatures = [
            each.encode()
            for url in (told["url"], bens_told["url"], headers["Location"])
            for each in parse_qs(urlsplit(url).query)["signature"]
        ]
        for path_, content in files_below(gateway.data_dir):
            assert not any(each in content for each in signatures), path_
        assert not any(each.decode() in gateway.log.read_text() for each in signatures)


async def test_links_lead_to_copies_without_the_workflow_once_the_store_has_them(lab: Lab) -> None:
    """While the store is away the files are on the gateway's disk, and have no link; their owners read them there."""
    simulators = await lab.simulators(1)
    gateway = await start(lab, simulators, links="signed", strip_metadata=True)
    bucket = stored_at(lab)
    # The gateway may be trying it, so that it is not empty.
    bucket.rename(lab.directory / "aside")
    bucket.write_text("no folder")
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    ((prompt_id, (image, data)),) = (await made(anna, 0x112233, prefix="annas")).items()
    await made(ben, 0x223344, prefix="bens")
    assert texts(data) == {"prompt"}

    async def spooled() -> Any:
        return (await anna.get(f"/history/{prompt_id}"))[prompt_id]["gateway_files"]

    (told,) = await until(spooled)
    assert (told["url"], told["expires_at"], told["stripped"]) == (None, None, True)
    await simulators[0].kill()
    await lab.backends_up(gateway, 0)
    assert (await asked(anna, image))[::2] == (200, data)
    assert (await asked(anna, image, Range="bytes=7-9"))[::2] == (206, data[7:10])
    assert (await asked(anna, {**image, "redirect": "1"}))[::2] == (200, data)
    assert (await asked(ben, image))[0] == 404
    bucket.unlink()
    bucket.mkdir()

    async def linked() -> Any:
        (found,) = (await anna.get(f"/api/jobs/{prompt_id}"))["gateway_files"]
        return found["url"] and found

    told = await until(linked)
    status, stripped = await fetched(lab.http, gateway.url + told["url"])
    assert status == 200
    assert texts(stripped) == set()
    assert colour(stripped) == colour(data)
    assert (await asked(anna, image))[::2] == (200, data)
    # The original is its owner's alone.
    status, headers, _ = await asked(anna, {**image, "redirect": "1"})
    assert status == 302
    assert await fetched(lab.http, gateway.url + headers["Location"]) == (200, data)
    assert urlsplit(headers["Location"]).path != urlsplit(told["url"]).path
