"""Isolated tenants on a shared backend: what may run there, and what may be opened.

Each attack reaches another tenant, or the host, on a ComfyUI without a gateway (tests/simulator/test_stock_nodes.py).
"""

from __future__ import annotations

import io
import json
import wave
from itertools import product
from typing import Any

import pytest
import pytest_asyncio

from gateway.simulator.nodes import seed_colour
from tests.support.comfy_client import Comfy
from tests.support.isolation import SECRET, node, saved, seen, tells
from tests.support.lab import GatewayProcess, Lab, until
from tests.support.pictures import colour, png
from tests.support.saved_copies import made
from tests.support.security_world import World, caller, start, start_world
from tests.support.tenancy import BOSS, key_of, serve, write_config
from tests.support.tenancy import caller as holder
from tests.support.uploads import upload
from tests.support.workflows import slow

ANNAS = 0x112233
# The limit on names would end these tests; it has one of its own.
MANY_NAMES = {"tenants__default__limits__bad_names_per_minute": 1_000_000}
SETTING = "tenants.default.nodes.trust"
sharing = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(shared_lab: Lab) -> World:
    """One for all that is refused: an attack that fails leaves nothing behind for the next one."""
    return await start_world(shared_lab, **MANY_NAMES)


def switched(source: str) -> dict[str, Any]:
    return node("ComfySwitchNode", switch=True, on_true=[source, 0], on_false=[source, 0])


def shown(source: str) -> dict[str, Any]:
    return node("PreviewAny", source=[source, 0])


IMAGE = node("EmptyImage", width=8, height=8, batch_size=1, color=0)
VIDEO = node("CreateVideo", images=["i", 0], fps=30)


async def refused(comfy: Comfy, prompt: dict[str, Any]) -> dict[str, Any]:
    status, answer = await comfy.post("/prompt", {"prompt": prompt})
    assert status == 400, answer
    return dict(answer)


def sound() -> bytes:
    with io.BytesIO() as buffer:
        with wave.open(buffer, "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes((9876).to_bytes(2, "little") * 100)
        return buffer.getvalue()


LOADERS = ("LoadImage", "LoadImageMask", "LoadImageOutput")


@sharing
@pytest.mark.parametrize("kind", ["output", "input", "temp"])
async def test_a_name_of_any_length_and_spelling_opens_nothing_of_anothers(world: World, kind: str) -> None:
    anna, ben = world.anna, world.ben
    if kind == "input":
        await upload(anna, png(SECRET), "annas.png")
        image = {"filename": "annas.png"}
        assert tells(SECRET) in await seen(anna, {"1": node("LoadImage", image="annas.png"), "2": saved("1")})
    else:
        image = await made(anna, slow(ANNAS, save=kind == "output"))
    before = (colour(await anna.view(image)),) if kind != "input" else (SECRET,)
    name = image["filename"]
    for spelled in (
        name,
        "./" * 16_400 + name,
        f"a/../{name}",
        f"//{name}",
        f"sub//..//{name}",
        f".\\{name}",
        name.upper(),
        name.replace(".", "%2e"),
        name[:-5] + "?" + name[-4:],
        name[:-5] + "*",
        f"[{name[0]}]{name[1:]}",
        f"%*/{name}",
    ):
        last = spelled if kind == "input" else f"{spelled}  [{kind}]"
        for annotated, loader in product((f"{spelled} [{kind}]", f"{spelled}[{kind}]", last), LOADERS):
            told = await seen(ben, {"1": node(loader, image=annotated, channel="red"), "2": saved("1")})
            assert not any(tells(each) in told for each in (*before, seed_colour(ANNAS))), annotated[-80:]


FOLDERS = (".", "", "a/..", "..", "/", "annas")


@sharing
@pytest.mark.parametrize("loader", ["LoadImageDataSetFromFolder", "LoadImageTextDataSetFromFolder"])
async def test_no_folder_is_opened_whatever_says_its_name(world: World, loader: str) -> None:
    anna, ben = world.anna, world.ben
    await upload(anna, png(SECRET), "annas.png")
    assert (await upload(anna, png(SECRET), "below.png", subfolder="annas"))[0] == 200
    for value in FOLDERS:
        text, listed = node("PrimitiveString", value=value), node("CreateList", **{"inputs.input0": ["1", 0]})
        for folder, between in (
            (value, {}),
            ({"__value__": value}, {}),
            (["2", 0], {"1": text, "2": switched("1")}),
            ({"__value__": ["2", 0]}, {"1": text, "2": switched("1")}),
            (["2", 0], {"1": text, "2": listed}),
        ):
            told = await seen(ben, {**between, "3": node(loader, folder=folder), "4": saved("3")})
            assert tells(SECRET) not in told, (value, folder)


@sharing
async def test_inputs_that_open_files_without_saying_so(world: World) -> None:
    anna, ben = world.anna, world.ben
    await upload(anna, png(SECRET), "1234567")
    await upload(anna, sound(), "annas.wav")
    widget = {"image": "1234567", "mask": "1234567", "normal": "1234567", "recording": "", "camera_info": None}

    def painted(mask: Any) -> dict[str, Any]:
        return {"1": node("Painter", mask=mask, width=64, height=64, bg_color="#000000"), "2": saved("1")}

    attacks: list[dict[str, Any]] = [painted(mask) for mask in (1234567, "1234567", {"__value__": 1234567}, 1234567.0)]
    attacks += [
        {"1": node("WebcamCapture", image="1234567", width=0, height=0, capture_on_queue=True), "2": saved("1")},
        {"1": node("Load3D", model_file="none", image=widget, width=64, height=64), "2": saved("1")},
    ]
    joined = {
        "1": node("StringConcatenate", string_a="annas.", string_b="wav", delimiter=""),
        "2": switched("1"),
        "4": shown("3"),
    }
    attacks += [
        {**joined, "3": node("RecordAudio", audio=value)} for value in (["2", 0], {"__value__": ["2", 0]}, "annas.wav")
    ]
    for attack in attacks:
        told = await seen(ben, attack)
        assert tells(SECRET) not in told
        assert f"{9876 / 32768:.4f}" not in told
    # Her own she opens, as ever.
    assert tells(SECRET) in await seen(anna, painted("1234567"))


FIELDS = (
    "{a.save_to.__globals__[os].sys.modules[gateway.simulator.server].Simulator.instance.queue.history}",
    "{a.__class__}",
    "{a[0]}",
    "{b:{a.save_to.__globals__[os]}}",
)


@sharing
async def test_a_format_reaches_no_insides(world: World) -> None:
    anna, ben = world.anna, world.ben
    await anna.entry(await anna.prompt({"1": node("PrimitiveString", value="annas-word"), "2": shown("1")}))
    values = {"values.a": ["v", 0], "values.b": 3}
    for field in FIELDS:
        prompt = {"i": IMAGE, "v": VIDEO, "3": node("StringFormat", **values, f_string=field), "4": shown("3")}
        answer = await refused(ben, prompt)
        assert answer["error"]["type"] == "input_refused"
        assert answer["node_errors"]["3"]["errors"][0]["extra_info"]["input_name"] == "f_string"
        linked = node("StringFormat", **values, f_string=["p", 0])
        await refused(ben, {**prompt, "p": node("PrimitiveString", value=field), "3": linked})
    plain = node("StringFormat", **{"values.a": "x", "values.b": 3}, f_string="{a}-{b:03}")
    assert "x-003" in await seen(ben, {"3": plain, "4": shown("3")})


@sharing
async def test_an_expression_calls_no_methods(world: World) -> None:
    ben = world.ben
    marker = world.lab.directory / "host.txt"
    marker.write_text("host-word")
    reads = f"a.untyped_storage().from_file('{marker}', False, 9).tolist()"

    def calculated(expression: Any, value: Any) -> dict[str, Any]:
        formula = node("ComfyMathExpression", **{"values.a": value}, expression=expression)
        source = node("PrimitiveString", value=reads)
        return {"1": IMAGE, "2": switched("1"), "p": source, "3": formula, "4": shown("3")}

    for attack in (
        calculated(reads, ["2", 0]),
        calculated("a + 1", ["2", 0]),
        calculated({"__value__": reads}, ["2", 0]),
        calculated(["p", 0], ["2", 0]),
        calculated("values[0].tolist()", 5),
    ):
        assert (await refused(ben, attack))["error"]["type"] in ("input_refused", "prompt_outputs_failed_validation")
    assert "24.0" in await seen(ben, calculated("a ** 2 - 1", 5))


SAVERS = [
    node(
        "SaveImageDataSetToFolder",
        images=["i", 0],
        folder_name="x",
        filename_prefix="../../../evil",
        mode="increment",
    ),
    node("SaveImageDataSetToFolder", images=["i", 0], folder_name="../..", filename_prefix="evil", mode="increment"),
    node("SaveImageDataSetToFolder", images=["i", 0], folder_name="", filename_prefix="x", mode="overwrite"),
    node("SaveImage", images=["i", 0], filename_prefix="../evil"),
    node("SaveImage", images=["i", 0], filename_prefix="loras/evil"),
    node("PreviewImage", images=["i", 0], filename_prefix=["p", 0]),
    node("SaveTrainingDataset", latents=["i", 0], conditioning=["i", 0], folder_name="x", shard_size=10),
]


@sharing
async def test_savers_write_nowhere_else(world: World) -> None:
    for saver in SAVERS:
        prompt = {"i": IMAGE, "p": node("PrimitiveString", value="steered/x"), "s": saver}
        await refused(world.ben, prompt)
    assert not list(world.lab.directory.rglob("*evil*"))


PLAYLISTS = [
    ("list.mp4", b"ffconcat version 1.0\nfile 'annas.png'\n"),
    ("list.png", b"#EXTM3U\n#EXTINF:1,\n../input/annas.png\n"),
    ("list.idx", b"anything"),
]


@sharing
async def test_uploads_that_name_other_files_are_refused(world: World) -> None:
    anna, ben = world.anna, world.ben
    await upload(anna, png(SECRET), "annas.png")
    for name, data in PLAYLISTS:
        status, answer = await upload(ben, data, name)
        assert status == 400
        assert name in json.dumps(answer)
        # Nor is what a prompt wrote opened as a playlist.
        text = node("PrimitiveString", value=data.decode())
        entry = await ben.entry(
            await ben.prompt({"1": text, "2": node("SaveText", text=["1", 0], filename_prefix="l", format="txt")})
        )
        (file,) = entry["outputs"]["2"]["files"]
        video = {
            "1": node("LoadVideo", file=f"{file['filename']} [output]"),
            "2": node("GetVideoComponents", video=["1", 0]),
            "3": saved("2"),
        }
        assert tells(SECRET) not in await seen(ben, video)


async def test_a_class_that_nobody_reviewed_waits_for_the_operators_word(lab: Lab) -> None:
    """The 400 names class, pack and setting. Trust is by class or pack, and lasts over a restart of the gateway."""
    simulator = await lab.simulator()
    prompt = slow(1)
    prompt["3"] = node("FailNode", image=["1", 0], message="boom")
    for trust, runs in ([], False), (["FailNode"], True), (["gw*"], True), (["other-pack"], False), (["*"], True):
        config = write_config(lab, [simulator], {"default": {"nodes": {"trust": trust}}}, {})
        gateway = await serve(lab, config, 1)
        ben = holder(lab, gateway, "ben")
        status, answer = await ben.post("/prompt", {"prompt": {**prompt, "2": saved("3")}})
        assert (status == 200) is runs, answer
        if not runs:
            assert answer["error"]["type"] == "node_not_trusted"
            for word in ("FailNode", "gwtest", SETTING):
                assert word in answer["error"]["message"]
            assert answer["error"]["extra_info"]["pack"] == "gwtest"
        status, _ = await holder(lab, gateway, BOSS).post("/prompt", {"prompt": {**prompt, "2": saved("3")}})
        assert status == 200, "an admin is refused nothing"
        await gateway.stop()


EVIL = {
    "i": IMAGE,
    "v": VIDEO,
    "3": node("StringFormat", **{"values.a": ["v", 0]}, f_string="{a.save_to.__name__}"),
    "4": shown("3"),
}


async def test_trust_of_everything_is_as_it_was(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await serve(lab, write_config(lab, [simulator], {"default": {"nodes": {"trust": ["*"]}}}, {}), 1)
    assert "save_to" in await seen(holder(lab, gateway, "ben"), EVIL)


async def test_a_dedicated_backend_refuses_its_tenant_nothing(lab: Lab) -> None:
    """What shared backends may not run goes there, and nowhere else; other tenants have no such place."""
    simulators = await lab.simulators(3)
    gateway = await serve(lab, write_config(lab, simulators, {}, {}, dedicated={"b3": ["anna"]}), 3)
    anna, ben = holder(lab, gateway, "anna"), holder(lab, gateway, "ben")
    for n in range(4):
        prompt = {**EVIL, "5": node("PrimitiveString", value=str(n)), "6": shown("5")}
        assert "save_to" in await seen(anna, prompt)
    await refused(ben, EVIL)
    ran = [await (await lab.http.get(f"{simulator.url}/history")).json() for simulator in simulators]
    assert [len(each) for each in ran] == [0, 0, 4]


async def keyed(lab: Lab, gateway: GatewayProcess, name: str) -> Comfy:
    """A user's key, made while the gateway runs."""
    async with lab.http.post(
        f"{gateway.url}/gateway/keys", json={"name": name}, headers=holder(lab, gateway, BOSS).headers
    ) as answer:
        assert answer.status in (200, 201), await answer.text()
        return Comfy(lab.http, gateway.url, X_API_Key=(await answer.json())["key"])


async def test_a_single_tenant_is_refused_nothing_until_it_has_company(lab: Lab) -> None:
    simulator = await lab.simulator()
    path = lab.directory / "alone.json"
    keys = [{"name": BOSS, "key": key_of(BOSS), "role": "admin"}]
    path.write_text(json.dumps({"auth": {"keys": keys}, "backends": [{"url": simulator.url, "name": "b1"}]}))
    gateway = await serve(lab, path, 1)
    anna = await keyed(lab, gateway, "anna")
    assert "save_to" in await seen(anna, EVIL)
    await keyed(lab, gateway, "ben")
    await refused(anna, EVIL)
    async with lab.http.delete(f"{gateway.url}/gateway/keys/ben", headers=holder(lab, gateway, BOSS).headers) as answer:
        assert answer.status in (200, 204)
    assert "save_to" in await seen(anna, EVIL)


async def test_before_a_backend_has_described_itself_nothing_is_let_through(lab: Lab) -> None:
    """It waits, or is answered with 503: without a catalogue nobody can say what an input opens."""
    simulator = await lab.simulator()
    await simulator.fault(lab.http, "500:/object_info")
    gateway = await start(lab, simulator, catalogue__timeout=1.0, catalogue__refresh=0.1)
    ben = caller(lab, gateway, "ben")
    prompt = {"1": node("PrimitiveString", value="x"), "2": shown("1")}
    status, answer = await ben.post("/prompt", {"prompt": prompt})
    assert status == 503, answer
    await simulator.no_faults(lab.http)

    async def is_taken() -> bool:
        return (await ben.post("/prompt", {"prompt": prompt}))[0] == 200

    await until(is_taken, what="the catalogue")


async def test_a_backend_that_comes_back_gets_nothing_until_it_has_described_itself(lab: Lab) -> None:
    """It may have other node classes than before."""
    simulator = await lab.simulator("--without", "FailNode")
    gateway = await start(lab, simulator, catalogue__timeout=1.0, catalogue__refresh=0.1)
    ben = caller(lab, gateway, "ben")
    prompt = {"1": node("PrimitiveString", value="x"), "2": shown("1")}
    await ben.entry(await ben.prompt(prompt))
    port = simulator.port
    await simulator.kill()
    await lab.backends_up(gateway, 0)
    again = await lab.simulator("--fail", "500:/object_info", port=port)
    await lab.backends_up(gateway, 1)
    waits = await ben.prompt(prompt)
    assert (await again.requests(lab.http)).get("POST /prompt", 0) == 0
    await again.no_faults(lab.http)
    assert (await ben.entry(waits))["status"]["status_str"] == "success"


async def test_names_are_counted(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await start(lab, simulator)
    ben = caller(lab, gateway, "ben")
    many = {str(n): node("LoadImage", image=f"ComfyUI_temp_{n:05}_00001_.png [temp]") for n in range(30)}
    status, answer = await ben.post("/prompt", {"prompt": {**many, "s": saved("0")}})
    assert (status, answer["error"]["type"]) == (400, "too_many_bad_names")
    statuses = set()
    for n in range(8):
        few = {str(m): node("LoadImage", image=f"t{n:02}{m:02}_.png [temp]") for m in range(19)}
        statuses.add((await ben.post("/prompt", {"prompt": {**few, "s": saved("0")}}))[0])
    assert 429 in statuses


@sharing
async def test_errors_tell_no_path_of_the_host(world: World) -> None:
    """In events, /history and /api/jobs alike; to an admin they tell it."""
    prompt = slow(1, steps=1)
    prompt["3"] = node(
        "FailNode", image=["1", 0], message="[Errno 2] No such file: '/srv/comfyui/input/annas/secret.png'"
    )
    prompt["2"]["inputs"]["images"] = ["3", 0]
    for name, is_told in ("ben", False), ("boss", True):
        comfy = caller(world.lab, world.gateway, name)
        listener = await comfy.listen("c")
        prompt_id = await comfy.prompt(prompt, "c")
        event = (await listener.next("execution_error"))["data"]
        entry = await comfy.entry(prompt_id)
        listed = await comfy.get(f"/api/jobs/{prompt_id}")
        del entry["prompt"], listed["workflow"]
        for told in (event["exception_message"], json.dumps(entry), json.dumps(listed)):
            assert ("/srv/comfyui" in told) is is_told, told
            assert "secret.png" in told


@sharing
async def test_the_letters_of_a_preview_are_worth_nothing(world: World) -> None:
    """The next prompt with the same node id gets the five letters of the one before, so its sender knows that name."""
    anna, ben = world.anna, world.ben
    hers = await made(anna, slow(ANNAS, save=False))
    bens = await made(ben, slow(2, save=False))
    assert (hers["type"], hers["filename"][:-10]) == ("temp", bens["filename"][:-10])
    assert hers["filename"] != bens["filename"]
    async with ben.http.get(f"{ben.url}/view", params=hers, headers=ben.headers) as answer:
        assert answer.status == 404
    for loaded in (
        {"1": node("LoadImage", image=f"{hers['filename']} [temp]"), "2": saved("1")},
        {
            "1": node("Painter", mask=f"{hers['filename']} [temp]", width=64, height=64, bg_color="#000000"),
            "2": saved("1"),
        },
    ):
        await refused(ben, loaded)
    assert colour(await anna.view(hers)) == seed_colour(ANNAS)
