"""Dedicated backends: they serve the prompts, uploads and reads of their own tenants, and of nobody else."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.support.backend_history import history_there
from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab, Simulator, until
from tests.support.pictures import png
from tests.support.tenancy import BOSS, caller, serve, write_config
from tests.support.uploads import upload
from tests.support.workflows import slow

ANNAS = {"b2": ["anna"]}


def saving(prefix: str, **more: Any) -> dict[str, Any]:
    """Return a prompt that is known by the prefix that it saves under."""
    return slow(sum(prefix.encode()), prefix=prefix, **more)


async def ran_on(lab: Lab, simulators: list[Simulator]) -> list[str]:
    """Return the history of each backend as text."""
    return [json.dumps(await history_there(lab, simulator)) for simulator in simulators]


def tells_of(text: str, *names: str | int) -> bool:
    """Return True if a text holds one of these as a word of its own: ETags and ids hold any two letters by chance."""
    return any(re.search(rf"\b{re.escape(str(name))}\b", text) for name in names)


async def text_of(comfy: Comfy, path: str) -> tuple[int, str]:
    """GET a path; (status, everything in the response)."""
    async with comfy.http.get(comfy.url + path, headers=comfy.headers) as answer:
        return answer.status, f"{dict(answer.headers)} {await answer.text(errors='replace')}"


@asynccontextmanager
async def held(lab: Lab, simulators: list[Simulator]) -> AsyncIterator[None]:
    """Let no sampler end meanwhile, so that each prompt finds those before it on their backends."""
    for simulator in simulators:
        await simulator.fault(lab.http, "silent")
    yield
    for simulator in simulators:
        await simulator.no_faults(lab.http)


async def start(lab: Lab, *options: tuple[str, ...], **more: Any) -> tuple[list[Simulator], GatewayProcess]:
    """Start two backends and a gateway that dedicates the second one to anna."""
    both = options or ((), ())
    simulators = [await lab.simulator("--record", *each) for each in both]
    gateway = await serve(lab, write_config(lab, simulators, {}, {}, dedicated=ANNAS), 2, **more)
    return simulators, gateway


async def test_prompts_go_to_a_dedicated_backend_from_its_tenants_alone(lab: Lab) -> None:
    """An admin's don't either. While the shared backend is down, prompts of others wait for it."""
    simulators, gateway = await start(lab)
    anna, too, ben, boss = (caller(lab, gateway, name) for name in ("anna", "anna-too", "ben", BOSS))
    async with held(lab, simulators):
        hers = [await each.prompt(saving(f"annas-{n}", steps=1)) for n, each in enumerate((anna, anna, too, too))]
        others = [await each.prompt(saving(f"others-{n}", steps=1)) for n, each in enumerate((ben, ben, boss))]
    for comfy, ids in ((anna, hers), (ben, others[:2]), (boss, others[2:])):
        for prompt_id in ids:
            assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"
    shared, own = await ran_on(lab, simulators)
    assert "annas-" in shared
    assert "annas-" in own
    assert "others-" not in own
    await simulators[0].kill()
    await lab.backends_up(gateway, 1)
    waits = await ben.prompt(saving("others-late"))
    assert (await anna.entry(await anna.prompt(saving("annas-late"))))["status"]["status_str"] == "success"
    assert len((await ben.get("/queue"))["queue_pending"]) == 1
    simulators[0] = await lab.simulator(port=simulators[0].port)
    assert (await ben.entry(waits))["status"]["status_str"] == "success"
    assert "others-late" in (await ran_on(lab, simulators))[0]
    assert "others-late" not in (await ran_on(lab, simulators))[1]


async def test_an_idle_dedicated_backend_takes_over_its_tenants_jobs_alone(lab: Lab) -> None:
    simulators, gateway = await start(lab)
    await simulators[1].kill()
    await lab.backends_up(gateway, 1)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    first = await ben.prompt(saving("bens-long", steps=1000, step_seconds=0.05))
    await ben.running(first)
    other, mine = await ben.prompt(saving("bens-next")), await anna.prompt(saving("annas-next"))
    simulators[1] = await lab.simulator(port=simulators[1].port)
    await anna.entry(mine)
    await ben.post("/interrupt", {"prompt_id": first})
    await ben.entry(other)
    shared, own = await ran_on(lab, simulators)
    assert "annas-next" in own
    assert "bens-" not in own
    assert "bens-next" in shared


async def test_nothing_of_others_reaches_a_dedicated_backend_or_tells_of_it(lab: Lab) -> None:
    """Neither uploads, views, reads that are passed on, nor the catalogue; also while the shared backend is down."""
    shared = ("--models", "both", "--without", "ImageBlur", "--max-upload-size", "3")
    simulators, gateway = await start(lab, shared, ("--models", "both,secret"))
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")

    async def is_known() -> bool:
        return "ImageBlur" in await anna.get("/object_info")

    await until(is_known)
    assert "secret.safetensors" in await anna.get("/models/checkpoints")
    assert len((await anna.get("/system_stats"))["devices"]) == 2
    assert (await anna.get("/features"))["max_upload_size"] > 3 * 2**20
    assert (await upload(ben, png((8, 8, 8)), "bens-upload.png"))[0] == 200
    image = ben.images(await ben.entry(await ben.prompt(saving("bens-image"))))[0]
    paths = [
        "/object_info",
        "/object_info/ImageBlur",
        "/models/checkpoints",
        "/view_metadata/checkpoints?filename=secret.safetensors",
        "/system_stats",
        "/features",
        "/settings",
        "/userdata?dir=bens-folder",
        "/extensions",
        "/i18n?bens-query",
        "/bens-path/of/a/custom/node?x=1",
        f"/view?filename={image['filename']}&type=output",
        "/view?filename=bens-upload.png&type=input&preview=webp",
        "/view?filename=bens-unknown.png&type=output",
        "/some/viewer?filename=bens-unknown.png",
        "/history",
        "/queue",
        "/prompt",
    ]
    seen = {path: await text_of(ben, path) for path in paths}
    status, refusal = await ben.post("/prompt", {"prompt": {**slow(), "7": {"class_type": "ImageBlur", "inputs": {}}}})
    assert status == 400
    assert seen["/object_info/ImageBlur"][1].endswith("{}")
    assert len((await ben.get("/system_stats"))["devices"]) == 1
    assert (await ben.get("/features"))["max_upload_size"] == 3 * 2**20
    listener = await ben.listen("c", flags={})
    assert (await listener.next("feature_flags"))["data"]["max_upload_size"] == 3 * 2**20
    assert (await upload(ben, io.BytesIO(bytes(4 * 2**20)), "bens-large.png"))[0] == 413
    await simulators[0].kill()
    await lab.backends_up(gateway, 1)
    for path in (
        "/extensions",
        "/bens-path/of/a/custom/node",
        "/view?filename=bens-upload.png&type=input&preview=webp",
    ):
        seen[f"{path} (down)"] = status, _ = await text_of(ben, path)
        assert status == 503, path
    await ben.prompt(saving("bens-waiting"))
    # Something that must reach the backend, so that all before it would have been seen there by now.
    await anna.entry(await anna.prompt(saving("annas-last")))
    there = json.dumps(await simulators[1].recorded(lab.http))
    assert "annas-last" in there
    assert "bens-" not in there
    for path, (_, text) in seen.items():
        assert not tells_of(text, "b2", "secret", simulators[1].port), (path, text[:500])
    assert not tells_of(json.dumps(refusal), "b2", "secret")


async def test_two_tenants_share_a_dedicated_backend(lab: Lab) -> None:
    """Beside labels, which narrow it down further."""
    simulators = await lab.simulators(3)
    config = write_config(
        lab,
        simulators,
        {"named": {"ben": {"labels": ["big"]}}},
        {"b2": ["big"], "b3": ["big"]},
        dedicated={"b2": ["anna", "ben"], "b3": ["anna"]},
    )
    gateway = await serve(lab, config, 3)
    anna, ben, eve = (caller(lab, gateway, name) for name in ("anna", "ben", "eve"))
    async with held(lab, simulators):
        ids = [(ben, await ben.prompt(saving(f"bens-{n}", steps=1))) for n in range(2)]
        ids += [(eve, await eve.prompt(saving(f"eves-{n}", steps=1))) for n in range(2)]
        ids += [(anna, await anna.prompt(saving(f"annas-{n}", steps=1))) for n in range(4)]
    for comfy, prompt_id in ids:
        assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"
    found = [
        {name for name in ("annas", "bens", "eves") if f"{name}-" in text} for text in await ran_on(lab, simulators)
    ]
    assert found[0] >= {"eves"}
    assert "bens" not in found[0]
    assert "bens" in found[1]
    assert "eves" not in found[1]
    assert found[2] == {"annas"}
    assert len((await ben.get("/system_stats"))["devices"]) == 1
    assert len((await eve.get("/system_stats"))["devices"]) == 1
    described = await caller(lab, gateway, BOSS).get("/gateway/backends")
    assert [each["tenants"] for each in described["backends"]] == [[], ["anna", "ben"], ["anna"]]


async def test_a_restart_with_a_backend_that_is_dedicated_now(lab: Lab) -> None:
    """Others' unfinished jobs leave it and run elsewhere, and no file is read from it any more."""
    simulators = await lab.simulators(2, "--record")
    gateway = await serve(lab, write_config(lab, simulators, {}, {}), 2)
    ben = caller(lab, gateway, "ben")
    await simulators[0].kill()
    await lab.backends_up(gateway, 1)
    image = ben.images(await ben.entry(await ben.prompt(saving("bens-image"))))[0]
    assert await ben.view(image)
    ids = [await ben.prompt(saving(f"bens-{n}", steps=1000, step_seconds=0.05)) for n in range(2)]
    await ben.running(ids[0])
    await gateway.stop()
    simulators[0] = await lab.simulator(port=simulators[0].port)
    gateway = await serve(lab, write_config(lab, simulators, {}, {}, dedicated=ANNAS), 2)
    anna, ben, boss = (caller(lab, gateway, name) for name in ("anna", "ben", BOSS))
    await ben.running(ids[0])
    there = Comfy(lab.http, simulators[1].url)

    async def is_empty() -> bool:
        queue = await there.get("/queue")
        return not queue["queue_running"] and not queue["queue_pending"]

    await until(is_empty)
    running = (await Comfy(lab.http, simulators[0].url).get("/queue"))["queue_running"]
    assert "bens-0" in json.dumps(running)
    status, text = await text_of(ben, f"/view?filename={image['filename']}&type=output")
    assert status == 404
    assert "dedicated to other tenants" in text
    assert not tells_of(text, "b2")
    loads = saving("bens-again")
    loads["8"] = {"class_type": "LoadImage", "inputs": {"image": f"{image['filename']} [output]"}}
    loads["9"] = {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "bens-again"}}
    await asyncio.gather(*(ben.post("/interrupt", {"prompt_id": each}) for each in ids))
    status, answer = await ben.post("/prompt", {"prompt": loads})
    assert status == 400
    assert "not for this caller any more" in json.dumps(answer)
    # An admin sees everything, and her backend works for her.
    assert await boss.view(image)
    assert await boss.view({**image, "tenant": "ben"})
    await anna.entry(await anna.prompt(saving("annas-image")))


async def test_a_tenant_without_any_backend_is_told_so(lab: Lab) -> None:
    """It does not wait for what can't come, neither with a new prompt nor with one that was accepted before."""
    simulators = [await lab.simulator()]
    gateway = await serve(lab, write_config(lab, simulators, {}, {}), 1)
    await simulators[0].kill()
    await lab.backends_up(gateway, 0)
    waits = await caller(lab, gateway, "ben").prompt(slow())
    await gateway.stop()
    simulators = [await lab.simulator(port=simulators[0].port)]
    gateway = await serve(lab, write_config(lab, simulators, {}, {}, dedicated={"b1": ["anna"]}), 1)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    name, told = (await ben.entry(waits))["status"]["messages"][-1]
    assert (name, told["exception_type"]) == ("execution_error", "PolicyDenied")
    assert "every backend is dedicated to other tenants" in told["exception_message"]
    status, answer = await ben.post("/prompt", {"prompt": slow()})
    assert (status, answer["error"]["type"]) == (403, "no_backend_allowed")
    for path in (
        "/object_info",
        "/object_info/SaveImage",
        "/models/checkpoints",
        "/system_stats",
        "/extensions",
        "/x/y",
    ):
        status, text = await text_of(ben, path)
        assert status == 403, (path, text)
        assert "no_backend_allowed" in text
        assert not tells_of(text, "b1")
        assert (await text_of(anna, path))[0] in (200, 404)
    await anna.entry(await anna.prompt(slow()))


async def test_what_an_admin_views_is_put_on_no_backend_that_its_owner_may_not_use(lab: Lab) -> None:
    """An admin reads everything from everywhere, but an upload goes to a backend only if its owner may use it."""
    simulators = await lab.simulators(2)
    named = {"anna": {"labels": ["hers"]}}
    config = write_config(lab, simulators, {"named": named}, {"b2": ["hers"]}, dedicated=ANNAS)
    gateway = await serve(lab, config, 2)
    anna, ben, boss = (caller(lab, gateway, name) for name in ("anna", "ben", BOSS))
    for down, owner in ((0, ben), (1, anna)):
        await simulators[down].kill()
        await lab.backends_up(gateway, 1)
        name = f"of-{down}.png"
        assert (await upload(owner, png((8, 8, 8)), name))[0] == 200
        tenant = "ben" if owner is ben else "anna"
        for query in ("", f"&tenant={tenant}"):
            status, _ = await text_of(boss, f"/view?filename={name}&type=input&preview=webp{query}")
            assert status == 503, (name, query)
        original = json.dumps({"filename": name, "type": "input", "subfolder": ""})
        status, _ = await upload(boss, png((0, 0, 0)), "mask.png", "mask", original_ref=original)
        assert status == 503, name
        counted = await simulators[1 - down].requests(lab.http)
        assert not [route for route in counted if "/upload/" in route], counted
        simulators[down] = await lab.simulator(port=simulators[down].port)
        await lab.backends_up(gateway, 2)
        # The owner's own backend is there again, and shows it.
        assert (await text_of(boss, f"/view?filename={name}&type=input&preview=webp"))[0] == 200
        assert not [route for route in await simulators[1 - down].requests(lab.http) if "/upload/" in route]
        simulators[down] = await restarted(lab, gateway, simulators[down])


async def restarted(lab: Lab, gateway: GatewayProcess, simulator: Simulator) -> Simulator:
    """Restart a backend, so that it counts from zero."""
    await simulator.stop()
    await lab.backends_up(gateway, 1)
    again = await lab.simulator(port=simulator.port)
    await lab.backends_up(gateway, 2)
    return again
