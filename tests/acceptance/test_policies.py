"""Which backends, node classes and models a tenant may use: when a job is sent, moved, kept waiting, and read about."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from click.testing import CliRunner

from gateway.cli.main import main
from tests.support.backend_history import history_there
from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab, Simulator, until
from tests.support.pictures import png
from tests.support.tenancy import BOSS, caller, serve, write_config
from tests.support.uploads import brought, upload
from tests.support.workflows import slow, text_to_image

LABELS = {"b1": ["small"], "b2": ["big"]}
ON_BIG = {"named": {"anna": {"labels": ["big"]}}}


async def two(lab: Lab, *options: str) -> list[Simulator]:
    """Two backends; the second has a model and a node class that the first has not, and `options`."""
    first = await lab.simulator("--models", "both,a", "--without", "ImageBlur")
    return [first, await lab.simulator("--models", "both,secret,b", *options)]


async def known(comfy: Comfy, node_class: str) -> None:
    """Wait until the gateway has read a backend."""

    async def look() -> bool:
        return node_class in await comfy.get("/object_info")

    await until(look)


async def ran_on(lab: Lab, gateway: GatewayProcess, simulators: Iterable[Simulator]) -> list[set[str]]:
    """What each backend ran, by the prompt_ids of clients."""
    names = {upstream_id: prompt_id for prompt_id, upstream_id in gateway.upstream_ids().items()}
    return [{names.get(each, each) for each in await history_there(lab, simulator)} for simulator in simulators]


async def test_jobs_go_where_the_labels_say(lab: Lab) -> None:
    """When they are sent, and when the other backend is idle all the while."""
    simulators = await two(lab)
    gateway = await serve(lab, write_config(lab, simulators, ON_BIG, LABELS), 2)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    async with lab.held(*simulators):
        mine = [await anna.prompt(slow(n, steps=6, step_seconds=0.05)) for n in range(5)]
        others = [await ben.prompt(slow(n, steps=6, step_seconds=0.05)) for n in range(5)]
    for comfy, ids in ((anna, mine), (ben, others)):
        for prompt_id in ids:
            assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"
    small, big = await ran_on(lab, gateway, simulators)
    assert set(mine) <= big
    assert small
    assert small | big == {*mine, *others}


async def test_jobs_wait_for_their_own_backend(lab: Lab) -> None:
    """While it is down, and over a restart with other labels; nobody else waits with them."""
    simulators = await two(lab)
    gateway = await serve(lab, write_config(lab, simulators, ON_BIG, LABELS), 2)
    await simulators[1].kill()
    await lab.backends_up(gateway, 1)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    mine = await anna.prompt(slow(1))
    await ben.entry(await ben.prompt(slow(2)))
    assert len((await anna.get("/queue"))["queue_pending"]) == 1
    await gateway.stop()
    gateway = await serve(lab, lab.directory / "gateway.yaml", 1)
    await caller(lab, gateway, "ben").entry(await caller(lab, gateway, "ben").prompt(slow(3)))
    assert len((await caller(lab, gateway, "anna").get("/queue"))["queue_pending"]) == 1
    await gateway.stop()
    # Moved to the other backend: it runs there.
    config = write_config(lab, simulators, {"named": {"anna": {"labels": ["small"]}}}, LABELS)
    gateway = await serve(lab, config, 1)
    assert (await caller(lab, gateway, "anna").entry(mine))["status"]["status_str"] == "success"
    assert mine in (await ran_on(lab, gateway, simulators[:1]))[0]


async def test_what_others_have_is_not_told(lab: Lab) -> None:
    """Catalogue, lists, devices and errors are those of the tenant's backends; a free tenant's are of all."""
    simulators = await two(lab)
    tenants = {"named": {"anna": {"labels": ["small"]}}}
    gateway = await serve(lab, write_config(lab, simulators, tenants, LABELS), 2)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    await known(ben, "ImageBlur")
    info = await anna.get("/object_info")
    assert "ImageBlur" not in info
    assert "SaveImage" in info
    assert await anna.get("/object_info/ImageBlur") == {}
    assert (await ben.get("/object_info/ImageBlur")).keys() == {"ImageBlur"}
    assert await anna.get("/models/checkpoints") == ["both.safetensors", "a.safetensors"]
    assert "secret.safetensors" in await ben.get("/models/checkpoints")
    assert len((await anna.get("/system_stats"))["devices"]) == 1
    assert len((await ben.get("/system_stats"))["devices"]) == 2
    texts = []
    for prompt in (
        text_to_image(model="secret.safetensors"),
        text_to_image(model="never-seen.safetensors"),
        {**slow(), "7": {"class_type": "ImageBlur", "inputs": {}}},
        {**slow(), "7": {"class_type": "NeverSeen", "inputs": {}}},
    ):
        status, answer = await anna.post("/prompt", {"prompt": prompt})
        assert status == 400
        text = json.dumps(answer)
        assert not any(name in text for name in ("b2", "backends", "b.safetensors"))
        texts.append(text.replace("secret", "never-seen").replace("ImageBlur", "NeverSeen"))
    # What only others have answers as what nobody has.
    assert texts[0] == texts[1]
    assert texts[2] == texts[3]
    assert (await ben.post("/prompt", {"prompt": text_to_image(model="secret.safetensors")}))[0] == 200


async def test_refused_nodes_and_models(lab: Lab) -> None:
    simulators = await two(lab)
    tenants = {"named": {"anna": {"nodes": {"deny": ["ImageB*", "Ghost"]}, "models": {"deny": ["*secret*"]}}}}
    gateway = await serve(lab, write_config(lab, simulators, tenants, LABELS), 2)
    anna, ben, boss = (caller(lab, gateway, name) for name in ("anna", "ben", BOSS))
    await known(ben, "ImageBlur")
    info = await anna.get("/object_info")
    assert not any(name.startswith("ImageB") for name in info)
    assert "secret" not in json.dumps(info)
    assert "secret.safetensors" in json.dumps(await ben.get("/object_info"))
    assert await anna.get("/models/checkpoints") == ["both.safetensors", "a.safetensors", "b.safetensors"]
    async with lab.http.get(
        f"{gateway.url}/view_metadata/checkpoints?filename=secret.safetensors", headers=anna.headers
    ) as answer:
        assert answer.status == 404
    blurred = {**slow(), "7": {"class_type": "ImageBlur", "inputs": {"image": ["1", 0]}, "_meta": {"title": "Soft"}}}
    status, body = await anna.post("/prompt", {"prompt": blurred})
    assert status == 400
    assert body["error"]["type"] == "node_denied"
    assert body["error"]["extra_info"] == {"node_id": "7", "class_type": "ImageBlur", "node_title": "Soft"}
    assert body["node_errors"]["7"]["errors"][0]["type"] == "node_denied"
    # The same whether there is such a class or not.
    assert (await anna.post("/prompt", {"prompt": {**slow(), "7": {"class_type": "Ghost"}}}))[1]["error"]["type"] == (
        "node_denied"
    )
    for model in ("secret.safetensors", "no-such-secret.ckpt", "a\\..\\SECRET.safetensors"):
        status, body = await anna.post("/prompt", {"prompt": text_to_image(model=model)})
        assert (status, body["error"]["type"]) == (400, "model_denied"), model
        (error,) = body["node_errors"]["1"]["errors"]
        assert error["extra_info"] == {"input_name": "ckpt_name", "received_value": model}
    status, body = await anna.post("/prompt", {"prompt": text_to_image(model="typo.safetensors")})
    assert (status, body["error"]["type"]) == (400, "prompt_outputs_failed_validation")
    assert "secret" not in json.dumps(body)
    # Nothing of it reached a backend, and nobody else is refused.
    assert not any(await ran_on(lab, gateway, simulators))
    await anna.entry(await anna.prompt(text_to_image(model="both.safetensors")))
    await ben.entry(await ben.prompt(text_to_image(model="secret.safetensors")))
    await boss.entry(await boss.prompt(text_to_image(model="secret.safetensors")))


async def test_a_denied_node_cant_be_smuggled_in(lab: Lab) -> None:
    """By a key that is there twice, escapes, another charset or a packed body: what is checked is what is sent."""
    simulators = [await lab.simulator()]
    tenants = {"default": {"nodes": {"deny": ["FailNode"]}}}
    gateway = await serve(lab, write_config(lab, simulators, tenants, {}), 1)
    anna = caller(lab, gateway, "anna")
    good, bad = json.dumps(slow()), json.dumps({**slow(), "9": {"class_type": "FailNode", "inputs": {}}})
    escaped = bad.replace("FailNode", "Fail\\u004eode")
    classes = '"class_type": "SaveImage"', '"class_type": "FailNode"'
    utf16 = {"Content-Type": "application/json; charset=utf-16"}
    bodies: list[tuple[bytes, dict[str, str], int]] = [
        (f'{{"prompt": {good}, "prompt": {bad}}}'.encode(), {}, 400),
        (f'{{"prompt": {bad}, "prompt": {good}}}'.encode(), {}, 200),
        (f'{{"prompt": {good}, "\\u0070rompt": {bad}}}'.encode(), {}, 400),
        (f'{{"prompt": {good.replace(classes[0], ", ".join(classes))}}}'.encode(), {}, 400),
        (f'{{"prompt": {good.replace(classes[0], ", ".join(reversed(classes)))}}}'.encode(), {}, 200),
        (f'{{"prompt": {escaped}}}'.encode(), {}, 400),
        (f'{{"prompt": {bad}}}'.encode("utf-16"), utf16, 400),
        (f'{{"prompt": {good}}}'.encode("utf-16"), utf16, 200),
        # What else is in the body goes upstream too, and can't stand for its prompt there.
        (f'{{"prompt": {good}, "x": 1, "extra_data": {{"prompt": {bad}}}}}'.encode(), {}, 200),
    ]
    ids = []
    for body, headers, wanted in bodies:
        async with lab.http.post(f"{gateway.url}/prompt", data=body, headers={**anna.headers, **headers}) as answer:
            assert answer.status == wanted, body
            if wanted == 200:
                ids.append((await answer.json())["prompt_id"])
    for prompt_id in ids:
        await anna.entry(prompt_id)
    for entry in (await history_there(lab, simulators[0])).values():
        assert {node["class_type"] for node in entry["prompt"][2].values()} == {"SlowSampler", "SaveImage"}


async def test_what_waits_is_held_against_a_new_policy(lab: Lab) -> None:
    simulators = [await lab.simulator()]
    gateway = await serve(lab, write_config(lab, simulators, {}, {}), 1)
    await simulators[0].kill()
    await lab.backends_up(gateway, 0)
    anna = caller(lab, gateway, "anna")
    refused, good = await anna.prompt(text_to_image()), await anna.prompt(slow())
    await gateway.stop()
    tenants = {"default": {"models": {"deny": ["sd_xl*"]}}}
    gateway = await serve(lab, write_config(lab, simulators, tenants, {}), 0)
    anna = caller(lab, gateway, "anna")
    name, told = (await anna.entry(refused))["status"]["messages"][-1]
    assert (name, told["exception_type"]) == ("execution_error", "PolicyDenied")
    assert "sd_xl_base_1.0.safetensors" in told["exception_message"]
    await lab.simulator(port=simulators[0].port)
    assert (await anna.entry(good))["status"]["status_str"] == "success"


async def test_files_stay_where_their_tenant_may_go(lab: Lab) -> None:
    """Uploads are put on no other backend; what was made elsewhere before can be seen still, and not be used."""
    directories = [lab.directory / "one", lab.directory / "two"]
    for directory in directories:
        directory.mkdir()
    simulators = [await lab.simulator("--base-dir", str(directory)) for directory in directories]
    gateway = await serve(lab, write_config(lab, simulators, ON_BIG, LABELS), 2)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    await upload(anna, png((9, 9, 9)), "annas.png")
    await upload(ben, png((8, 8, 8)), "bens.png")

    async def spread() -> bool:
        return all(brought(directory, png((8, 8, 8))) for directory in directories)

    await until(spread)
    prompt = slow(1)
    prompt["8"] = {"class_type": "LoadImage", "inputs": {"image": "annas.png"}}
    prompt["9"] = {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "x"}}
    image = anna.images(await anna.entry(await anna.prompt(prompt)))[0]
    assert await anna.view(image)
    assert not brought(directories[0], png((9, 9, 9)))
    await gateway.stop()
    config = write_config(lab, simulators, {"named": {"anna": {"labels": ["small"]}}}, LABELS)
    gateway = await serve(lab, config, 2)
    anna = caller(lab, gateway, "anna")
    assert await anna.view(image)
    prompt["8"]["inputs"]["image"] = f"{image['filename']} [output]"
    status, answer = await anna.post("/prompt", {"prompt": prompt})
    assert status == 400
    assert "not for this caller any more" in json.dumps(answer)
    prompt["8"]["inputs"]["image"] = "annas.png"
    await anna.entry(await anna.prompt(prompt))
    assert brought(directories[0], png((9, 9, 9)))


async def test_what_is_passed_on_goes_to_the_tenants_backends(lab: Lab) -> None:
    simulators = await lab.simulators(2)
    gateway = await serve(lab, write_config(lab, simulators, ON_BIG, LABELS), 2)

    async def asked(path: str) -> list[int]:
        return [sum(n for key, n in (await s.requests(lab.http)).items() if path in key) for s in simulators]

    for name, path in (("anna", "extensions"), ("ben", "i18n")):
        async with lab.http.get(f"{gateway.url}/{path}", headers=caller(lab, gateway, name).headers) as answer:
            await answer.read()
    assert await asked("extensions") == [0, 1]
    assert await asked("i18n") == [1, 0]


async def test_work_stealing_respects_labels(lab: Lab) -> None:
    """An idle backend steals the job of who may go there, and not the one before it in the queue."""
    simulators = await lab.simulators(2)
    gateway = await serve(lab, write_config(lab, simulators, ON_BIG, LABELS), 2)
    await simulators[0].kill()
    await lab.backends_up(gateway, 1)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    first = await anna.prompt(slow(0, steps=1000, step_seconds=0.05))
    await anna.running(first)
    mine, other = await anna.prompt(slow(1)), await ben.prompt(slow(2))
    simulators[0] = await lab.simulator(port=simulators[0].port)
    assert (await ben.entry(other))["status"]["status_str"] == "success"
    assert other in (await ran_on(lab, gateway, simulators[:1]))[0]
    await anna.post("/interrupt", {"prompt_id": first})
    await anna.entry(mine)
    small, big = await ran_on(lab, gateway, simulators)
    assert mine in big
    assert mine not in small


async def test_a_lost_backends_jobs_stay_with_their_label(lab: Lab) -> None:
    """What a backend had goes elsewhere when it is gone, but only where its tenant may go."""
    simulators = await lab.simulators(3)
    labels = {"b1": ["small"], "b2": ["big"], "b3": ["big"]}
    gateway = await serve(lab, write_config(lab, simulators, ON_BIG, labels), 3)
    anna = caller(lab, gateway, "anna")
    async with lab.held(*simulators[1:]):
        ids = [await anna.prompt(slow(n, steps=20, step_seconds=0.05)) for n in range(4)]
        await simulators[1].kill()
    for prompt_id in ids:
        assert (await anna.entry(prompt_id))["status"]["status_str"] == "success"
    small, big = await ran_on(lab, gateway, [simulators[0], simulators[2]])
    assert not small
    assert big <= set(ids)
    assert big


def test_a_label_that_no_backend_has(tmp_path: Path) -> None:
    """``check`` says so, with the place in the file."""
    path = tmp_path / "gateway.yaml"
    path.write_text(
        "backends: [{url: 'http://127.0.0.1:1', labels: [big]}]\n"
        "tenants: {default: {labels: [bgi]}, named: {anna: {labels: [big, huge]}}}\n"
    )
    result = CliRunner().invoke(main, ["check", "--config", str(path)])
    assert result.exit_code == 2
    assert "tenants.default.labels: no backend has the label 'bgi'" in result.output
    assert "tenants.named.anna.labels: no backend has the label 'huge'" in result.output


def test_a_tenant_that_no_key_stands_for(tmp_path: Path) -> None:
    """A hint and no more: its key may be in the store."""
    path = tmp_path / "gateway.yaml"
    path.write_text(
        "backends: [{url: 'http://127.0.0.1:1'}]\n"
        "auth: {keys: [{name: anna, key: a-key-for-tests}, {name: app, key: another-for-tests, tenant: team}]}\n"
        "tenants: {named: {anna: {}, team: {}, app: {}, default: {}}}\n"
    )
    result = CliRunner().invoke(main, ["check", "--config", str(path)])
    assert result.exit_code == 1
    assert "tenants.named.app: no key of the configuration" in result.output
    assert result.output.count("tenants.named") == 1
