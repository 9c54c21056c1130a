"""What an isolated tenant's savers write lies on shared backends where no other tenant's prompt can name it."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gateway.simulator.nodes import seed_colour
from tests.support.comfy_client import Comfy
from tests.support.hidden_uploads import SECRET, surfaces
from tests.support.lab import Lab
from tests.support.pictures import colour, png
from tests.support.security_world import caller, start
from tests.support.uploads import upload
from tests.support.workflows import slow

PLACE = re.compile(r"o/[0-9a-f]{32}/f/.+")


def saving(seed: int, **prefixes: str) -> dict[str, Any]:
    """A picture, saved once for each node id and prefix."""
    prompt: dict[str, Any] = {"1": slow(seed)["1"]}
    for node_id, prefix in prefixes.items():
        inputs = {"images": ["1", 0], "filename_prefix": prefix}
        prompt[node_id] = {"class_type": "SaveImage", "inputs": inputs}
    return prompt


async def names(comfy: Comfy, prompt: dict[str, Any]) -> list[str]:
    """The paths of what a prompt saved, as its sender sees them; each opens its picture."""
    entry = await comfy.entry(await comfy.prompt(prompt))
    assert entry["status"]["status_str"] == "success", entry["status"]
    images = comfy.images(entry)
    for image in images:
        assert colour(await comfy.view(image)) == seed_colour(prompt["1"]["inputs"]["seed"])
    return sorted(f"{image['subfolder']}/{image['filename']}".strip("/") for image in images)


def written(base: Path) -> list[str]:
    """The paths of all files below output/."""
    return sorted(str(path.relative_to(base / "output")) for path in (base / "output").rglob("*") if path.is_file())


async def test_each_saver_writes_into_a_folder_of_its_own(lab: Lab, tmp_path: Path) -> None:
    gateway = await start(lab, await lab.simulator("--base-dir", str(tmp_path)))
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    for comfy in (anna, ben):
        assert await names(comfy, saving(1, a="pic", b="deep/pic")) == ["deep/pic_00001_.png", "pic_00001_.png"]
    places = written(tmp_path)
    assert len({place.split("/")[1] for place in places}) == 4
    assert all(PLACE.fullmatch(place) for place in places)


async def test_names_count_as_one_comfyui_would(lab: Lab) -> None:
    """Per tenant, folder and prefix, over all backends; a cached repeat has its old name."""
    gateway = await start(lab, *await lab.simulators(3))
    anna = caller(lab, gateway, "anna")
    for number in range(1, 7):
        assert await names(anna, saving(number, a="pic")) == [f"pic_{number:05}_.png"]
    assert await names(anna, saving(9, a="other", b="x/pic")) == ["other_00001_.png", "x/pic_00001_.png"]
    # On whichever backend it runs again, or not.
    assert await names(anna, saving(9, a="other")) in (["other_00001_.png"], ["other_00002_.png"])


async def test_a_repeat_is_cached_under_its_old_name(lab: Lab) -> None:
    gateway = await start(lab, await lab.simulator("--cache-ram"))
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    # The other tenant's first: ComfyUI keeps what its last prompt had.
    assert await names(ben, saving(1, a="pic")) == ["pic_00001_.png"]
    first = await names(anna, saving(1, a="pic"))
    listener = await anna.listen("c")
    renumbered = {f"9{key}": value for key, value in saving(1, a="pic").items()}
    renumbered["9a"]["inputs"]["images"] = ["91", 0]
    for prompt in (saving(1, a="pic"), renumbered):
        prompt_id = await anna.prompt(prompt, "c")
        cached = await listener.next("execution_cached")
        assert sorted(cached["data"]["nodes"]) == sorted(prompt)
        (image,) = anna.images(await anna.entry(prompt_id))
        assert [image["filename"]] == first
    # A changed branch: only its own saver runs.
    assert await names(anna, saving(1, a="pic", b="more")) == ["more_00001_.png", "pic_00001_.png"]


async def test_names_go_on_after_a_restart_and_emptied_folders(lab: Lab, tmp_path: Path) -> None:
    simulator = await lab.simulator("--base-dir", str(tmp_path))
    gateway = await start(lab, simulator)
    anna = caller(lab, gateway, "anna")
    assert await names(anna, saving(1, a="pic")) == ["pic_00001_.png"]
    assert await gateway.stop() == 0
    await simulator.stop()
    shutil.rmtree(tmp_path / "output")
    simulator = await lab.simulator("--base-dir", str(tmp_path))
    gateway = await start(lab, simulator)
    anna = caller(lab, gateway, "anna")
    assert await names(anna, saving(2, a="pic")) == ["pic_00002_.png"]
    # The same prompt again: it writes to the very place of the first one, which is gone with its name.
    assert await names(anna, saving(1, a="pic")) == ["pic_00003_.png"]
    async with lab.http.get(f"{gateway.url}/view?filename=pic_00001_.png", headers=anna.headers) as answer:
        assert answer.status == 404


async def test_no_caller_reads_a_secret_folder(lab: Lab, tmp_path: Path) -> None:
    gateway = await start(lab, await lab.simulator("--base-dir", str(tmp_path)))
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    listener = await anna.listen("c")
    prompt = saving(1, a="pic", b="deep/%year%/pic")
    prompt_id = await anna.prompt(prompt, "c")
    await listener.end_of(prompt_id)
    entry = await anna.entry(prompt_id)
    assert entry["prompt"][2] == prompt
    assert not SECRET.search(
        await surfaces(anna, prompt_id) + await surfaces(ben) + json.dumps(listener.heard, default=str)
    )
    assert all(PLACE.fullmatch(place) for place in written(tmp_path))


@pytest.mark.parametrize(
    ("prefix", "seen"),
    [("", "._00001_.png"), ("a/b", "a/b_00001_.png"), ("a/../b", "b_00001_.png"), ("x%width%", "x64_00001_.png")],
)
async def test_odd_prefixes_are_seen_as_comfyui_writes_them(lab: Lab, prefix: str, seen: str) -> None:
    gateway = await start(lab, await lab.simulator())
    anna, alone = caller(lab, gateway, "anna"), Comfy(lab.http, (await lab.simulator()).url)
    assert await names(anna, saving(1, a=prefix)) == await names(alone, saving(1, a=prefix)) == [seen]


def linked(seed: int, text: Any) -> dict[str, Any]:
    """A picture whose prefix comes from another node."""
    prompt = saving(seed, a="x")
    prompt["t"] = {"class_type": "PrimitiveString", "inputs": {"value": text}}
    prompt["a"]["inputs"]["filename_prefix"] = ["t", 0]
    return prompt


@pytest.mark.parametrize(
    ("text", "seen"), [("pic", "pic"), ("deep/pic", "deep/pic"), ("../../pic", "__/__/pic"), ("pic/", "pic/__")]
)
async def test_a_linked_prefix_is_put_below_a_secret_folder(lab: Lab, tmp_path: Path, text: str, seen: str) -> None:
    """By nodes that nobody sees: not in events, nor in the history."""
    gateway = await start(lab, await lab.simulator("--base-dir", str(tmp_path), "--cache-ram"))
    anna = caller(lab, gateway, "anna")
    listener, prompt = await anna.listen("c"), linked(1, text)
    for _ in range(2):
        prompt_id = await anna.prompt(prompt, "c")
        await listener.end_of(prompt_id)
        entry = await anna.entry(prompt_id)
        assert entry["prompt"][2] == prompt
        assert entry["outputs"].keys() == entry["meta"].keys() == {"a"}
        (image,) = anna.images(entry)
        assert f"{image['subfolder']}/{image['filename']}".strip("/") == f"{seen}_00001_.png"
        assert colour(await anna.view(image)) == seed_colour(1)
    told = await surfaces(anna, prompt_id) + json.dumps(listener.heard, default=str)
    assert not SECRET.search(told)
    assert not re.search(r'"g[0-9a-f]{24}"', told)
    cached = [event["data"]["nodes"] for event in listener.heard if event["type"] == "execution_cached"]
    assert [sorted(nodes) for nodes in cached] == [[], sorted(prompt)]
    assert all(PLACE.fullmatch(place) for place in written(tmp_path))


async def test_a_linked_prefix_goes_to_a_backend_that_can_steer_it(lab: Lab) -> None:
    lacking = await lab.simulator("--without", "RegexReplace")
    anna = caller(lab, await start(lab, lacking, await lab.simulator()), "anna")
    prompts = [await anna.prompt(linked(number, "pic")) for number in range(4)]
    seen = [anna.images(await anna.entry(prompt))[0]["filename"] for prompt in prompts]
    assert sorted(seen) == [f"pic_{number:05}_.png" for number in range(1, 5)]


async def test_an_output_is_the_input_of_a_later_prompt(lab: Lab) -> None:
    gateway = await start(lab, *await lab.simulators(2))
    anna = caller(lab, gateway, "anna")
    (name,) = await names(anna, saving(5, a="pic"))
    for _ in range(3):
        prompt: dict[str, Any] = {
            "1": {"class_type": "LoadImage", "inputs": {"image": f"{name} [output]"}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "again"}},
        }
        (image,) = anna.images(await anna.entry(await anna.prompt(prompt)))
        assert colour(await anna.view(image)) == seed_colour(5)


async def test_a_lone_tenant_sees_no_difference(lab: Lab, tmp_path: Path) -> None:
    gateway = await lab.gateway(await lab.simulator("--base-dir", str(tmp_path)))
    assert await names(Comfy(lab.http, gateway.url), saving(1, a="pic")) == ["pic_00001_.png"]
    assert written(tmp_path) == ["pic_00001_.png"]


async def test_a_node_that_names_anothers_secret_folder_gets_nothing(lab: Lab, tmp_path: Path) -> None:
    """Whatever a custom node tells of: only its own job's folders make a file the job's."""
    gateway = await start(lab, await lab.simulator("--base-dir", str(tmp_path)))
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    (name,) = await names(anna, saving(5, a="pic"))
    (place,) = written(tmp_path)
    folder, _, filename = place.rpartition("/")
    ben.is_watched = False
    for told in (filename, "other_00001_.png"):
        ui = {"images": [{"filename": told, "subfolder": folder, "type": "output"}], "result": [f"{folder}/mesh.glb"]}
        prompt = {"t": {"class_type": "TellNode", "inputs": {"ui": json.dumps(ui)}}}
        output = (await ben.entry(await ben.prompt(prompt)))["outputs"]["t"]
        assert output == {"images": [{"filename": told, "subfolder": "", "type": "output"}], "result": ["mesh.glb"]}
        query = f"filename={told}&type=output"
        async with lab.http.get(f"{gateway.url}/view?{query}", headers=ben.headers) as answer:
            assert answer.status == 404
    assert colour(await anna.view({"filename": name, "type": "output"})) == seed_colour(5)


async def test_the_prompt_out_of_an_own_picture_runs_again(lab: Lab, tmp_path: Path) -> None:
    """Its prefix has the secret folder of then, which the new name must not have, nor a name that is told before."""
    gateway = await start(lab, await lab.simulator("--base-dir", str(tmp_path)))
    anna = caller(lab, gateway, "anna")
    assert await names(anna, saving(1, a="deep/pic")) == ["deep/pic_00001_.png"]
    (place,) = written(tmp_path)
    secret = place.removesuffix("deep/pic_00001_.png")
    anna.is_watched = False
    assert await names(anna, saving(2, a=f"{secret}deep/pic")) == ["deep/pic_00002_.png"]


async def test_names_do_not_collide_with_uploads_into_outputs(lab: Lab) -> None:
    gateway = await start(lab, await lab.simulator())
    anna = caller(lab, gateway, "anna")
    await upload(anna, png((1, 2, 3)), "pic_00001_.png", type="output")
    assert await names(anna, saving(1, a="pic")) == ["pic_00002_.png"]
    await upload(anna, png((4, 5, 6)), "pic_00002_.png", type="output", overwrite="true")
    assert await names(anna, saving(2, a="pic")) == ["pic_00003_.png"]


async def test_a_link_to_an_added_node_is_refused(lab: Lab, tmp_path: Path) -> None:
    """Its id is in the pictures of the tenant's own."""
    gateway = await start(lab, await lab.simulator("--base-dir", str(tmp_path)))
    anna = caller(lab, gateway, "anna")
    await names(anna, linked(1, "pic"))
    (there,) = (tmp_path / "output").rglob("*.png")
    added = sorted(set(re.findall(r'"(g[0-9a-f]{24})"', there.read_text("latin-1"))))
    assert len(added) == 2
    for node_id in added:
        prompt = linked(1, "pic")
        prompt["p"] = {"class_type": "PreviewAny", "inputs": {"source": [node_id, 0]}}
        assert (await anna.post("/prompt", {"prompt": prompt}))[0] == 400


async def test_secret_folders_in_a_picture_are_written_over(lab: Lab, tmp_path: Path) -> None:
    """If the operator wants it, also in the parts of a file, and not on the disk."""
    simulator = await lab.simulator("--base-dir", str(tmp_path))
    gateway = await start(lab, simulator, outputs__hide_names="true")
    anna = caller(lab, gateway, "anna")
    await upload(anna, png((1, 2, 3)), "cat.png", subfolder="my")
    prompt: dict[str, Any] = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "my/cat.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "deep/pic"}},
    }
    (image,) = anna.images(await anna.entry(await anna.prompt(prompt)))
    whole = await anna.view(image)
    (there,) = (tmp_path / "output").rglob("*.png")
    assert SECRET.search(there.read_text("latin-1"))
    assert not SECRET.search(whole.decode("latin-1"))
    assert len(whole) == there.stat().st_size
    with Image.open(io.BytesIO(whole)) as opened:
        assert json.loads(opened.info["prompt"]) == prompt
    parts = []
    for start_at in range(0, len(whole), 100):
        headers = {**anna.headers, "Range": f"bytes={start_at}-{start_at + 99}"}
        async with lab.http.get(f"{gateway.url}/view", params=image, headers=headers) as answer:
            assert answer.status == 206
            parts.append(await answer.read())
    assert b"".join(parts) == whole


async def test_a_linked_prefix_is_refused_if_no_backend_of_the_tenant_can_steer_it(lab: Lab) -> None:
    gateway = await start(lab, await lab.simulator("--without", "RegexReplace"))
    status, answer = await caller(lab, gateway, "anna").post("/prompt", {"prompt": linked(1, "pic")})
    assert status == 400
    assert "needs the stock classes RegexReplace" in json.dumps(answer)
