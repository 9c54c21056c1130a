"""The simulator's stock classes have the holes of ComfyUI's own, so that tests of isolation can find them."""

from __future__ import annotations

import io
import json
import wave
from pathlib import Path
from typing import Any

import aiohttp
from PIL import Image

from tests.support.comfy_client import Comfy
from tests.support.lab import Lab

SECRET = (201, 13, 77)


async def _start(lab: Lab) -> Comfy:
    base = lab.directory / "base"
    return Comfy(lab.http, (await lab.simulator("--base-dir", str(base))).url)


def _png(colour: tuple[int, ...] = SECRET) -> bytes:
    with io.BytesIO() as buffer:
        Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
        return buffer.getvalue()


async def _upload(comfy: Comfy, name: str, data: bytes, subfolder: str = "") -> None:
    form = aiohttp.FormData({"subfolder": subfolder, "overwrite": "true"})
    form.add_field("image", data, filename=name)
    async with comfy.http.post(f"{comfy.url}/upload/image", data=form) as answer:
        assert answer.status == 200


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def _through_switch(source: str) -> dict[str, Any]:
    return _node("ComfySwitchNode", switch=True, on_true=[source, 0], on_false=[source, 0])


def _saved(source: str) -> dict[str, Any]:
    return _node("SaveImage", images=[source, 0], filename_prefix="bens")


async def _colours(comfy: Comfy, prompt: dict[str, Any]) -> list[Any]:
    entry = await comfy.entry(await comfy.prompt(prompt))
    assert entry["status"]["status_str"] == "success", entry["status"]
    colours = []
    for image in comfy.images(entry):
        with Image.open(io.BytesIO(await comfy.view(image))) as picture:
            colours.append(picture.convert("RGB").getpixel((1, 1)))
    return colours


async def _texts(comfy: Comfy, prompt: dict[str, Any]) -> str:
    entry = await comfy.entry(await comfy.prompt(prompt))
    assert entry["status"]["status_str"] == "success", entry["status"]
    return "".join(text for output in entry["outputs"].values() for text in output.get("text", ()))


async def _error(comfy: Comfy, prompt: dict[str, Any]) -> str:
    entry = await comfy.entry(await comfy.prompt(prompt))
    assert entry["status"]["status_str"] == "error", entry
    return json.dumps(entry["status"]["messages"][-1])


async def test_a_switch_hands_a_text_to_a_folder_input(lab: Lab) -> None:
    comfy = await _start(lab)
    await _upload(comfy, "a.png", _png())
    await _upload(comfy, "b.png", _png((1, 2, 3)), "below")
    for class_type, value, expected in (
        ("LoadImageDataSetFromFolder", ".", [SECRET]),
        ("LoadImageDataSetFromFolder", "", [SECRET]),
        ("LoadImageTextDataSetFromFolder", ".", [SECRET, (1, 2, 3)]),
    ):
        prompt = {
            "1": _node("PrimitiveString", value=value),
            "2": _through_switch("1"),
            "3": _node(class_type, folder=["2", 0]),
            "4": _saved("3"),
        }
        assert await _colours(comfy, prompt) == expected
        status, answer = await comfy.post("/prompt", {"prompt": {**prompt, "3": _node(class_type, folder=value)}})
        assert (status, answer["node_errors"]["3"]["errors"][0]["type"]) == (400, "value_not_in_list")


async def test_inputs_without_a_check_open_files(lab: Lab) -> None:
    comfy = await _start(lab)
    await _upload(comfy, "1234567", _png())
    widget = {"image": "1234567", "mask": "1234567", "normal": "1234567", "recording": "", "camera_info": None}
    for node in (
        _node("Painter", mask=1234567, width=64, height=64, bg_color="#000000"),
        _node("WebcamCapture", image="1234567", width=0, height=0, capture_on_queue=True),
        _node("Load3D", model_file="none", image=widget, width=64, height=64),
    ):
        assert SECRET in await _colours(comfy, {"1": node, "2": _saved("1")})


async def test_audio_comes_through_a_switch_or_an_unwrapped_link(lab: Lab) -> None:
    comfy = await _start(lab)
    with io.BytesIO() as buffer:
        with wave.open(buffer, "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes((9876).to_bytes(2, "little") * 100)
        await _upload(comfy, "a.wav", buffer.getvalue())
    for value in (["2", 0], {"__value__": ["2", 0]}):
        prompt = {
            "1": _node("PrimitiveString", value="a.wav"),
            "2": _through_switch("1"),
            "3": _node("RecordAudio", audio=value),
            "4": _node("PreviewAny", source=["3", 0]),
        }
        assert f"{9876 / 32768:.4f}" in await _texts(comfy, prompt)
    status, _ = await comfy.post("/prompt", {"prompt": {**prompt, "3": _node("LoadAudio", audio=["2", 0])}})
    assert status == 400


async def test_playlists_play_other_files(lab: Lab) -> None:
    comfy = await _start(lab)
    await _upload(comfy, "a.png", _png())
    await _upload(comfy, "list.mp4", b"ffconcat version 1.0\nfile 'a.png'\n")
    await _upload(comfy, "list.png", b"#EXTM3U\n#EXTINF:1,\n../input/a.png\n")
    for name in ("list.mp4", "list.png"):
        prompt = {
            "1": _node("LoadVideo", file=name),
            "2": _node("GetVideoComponents", video=["1", 0]),
            "3": _saved("2"),
        }
        assert await _colours(comfy, prompt) == [SECRET]


async def test_a_format_field_reaches_all_prompts(lab: Lab) -> None:
    comfy = await _start(lab)
    await comfy.entry(await comfy.prompt({"1": _node("PrimitiveString", value="annas-word"), "2": _shown("1")}))
    server = "os].sys.modules[gateway.simulator.server].Simulator.instance.queue.history"
    prompt = {
        "1": _node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": _node("CreateVideo", images=["1", 0], fps=30),
        "3": _node("StringFormat", **{"values.a": ["2", 0]}, f_string="{a.save_to.__globals__[" + server + "}"),
        "4": _shown("3"),
    }
    assert "annas-word" in await _texts(comfy, prompt)
    prompt["3"] = _node("StringFormat", **{"values.a": "x", "values.b": 3}, f_string="{a}-{b:03}")
    assert await _texts(comfy, prompt) == "x-003"


def _shown(source: str) -> dict[str, Any]:
    return _node("PreviewAny", source=[source, 0])


async def test_an_expression_reads_a_file_of_the_host(lab: Lab) -> None:
    comfy = await _start(lab)
    marker = lab.directory / "host.txt"
    marker.write_text("host-word")
    prompt = {
        "1": _node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": _through_switch("1"),
        "3": _node("ComfyMathExpression", **{"values.a": ["2", 0]}, expression="a + 1"),
        "4": _shown("3"),
    }
    prompt["3"]["inputs"]["expression"] = f"a.untyped_storage().from_file('{marker}', False, 9).tolist()"
    assert str(list(b"host-word")) in await _error(comfy, prompt)
    prompt["3"] = _node("ComfyMathExpression", **{"values.a": 2, "values.b": 5}, expression="max(a, b) ** 2 - 1")
    assert await _texts(comfy, prompt) == "24.0"
    prompt["3"]["inputs"]["values.a"] = ["1", 0]
    assert (await comfy.post("/prompt", {"prompt": prompt}))[0] == 400


async def test_undeclared_literals_are_dropped_and_links_passed_on(lab: Lab) -> None:
    comfy = await _start(lab)
    prompt = {
        "1": _node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": _node("PrimitiveString", value="steered/x"),
        "3": _node("PreviewImage", images=["1", 0], filename_prefix="dropped"),
    }
    (image,) = comfy.images(await comfy.entry(await comfy.prompt(prompt)))
    assert image["filename"].startswith("ComfyUI_temp_")
    prompt["3"]["inputs"]["filename_prefix"] = ["2", 0]
    (image,) = comfy.images(await comfy.entry(await comfy.prompt(prompt)))
    assert image["subfolder"] == "steered"
    prompt["3"] = _node("SaveImage", images=["1", 0], filename_prefix="x", other=["2", 0])
    assert "unexpected keyword argument 'other'" in await _error(comfy, prompt)


async def test_temporary_names_belong_to_node_id_and_class(lab: Lab) -> None:
    comfy = Comfy(lab.http, (await lab.simulator("--cache-classic")).url)

    async def name(node_id: str, color: int) -> str:
        nodes = {"1": _node("EmptyImage", width=8, height=8, batch_size=1, color=color)}
        prompt = {**nodes, node_id: _node("PreviewImage", images=["1", 0])}
        return str(comfy.images(await comfy.entry(await comfy.prompt(prompt)))[0]["filename"])

    first, second, other, third = [await name(id_, color) for color, id_ in enumerate(("9", "9", "8", "9"))]
    assert (first[:-10], first[-10:], second[-10:]) == (second[:-10], "00001_.png", "00002_.png")
    assert len({first[:-10], other[:-10], third[:-10]}) == 3


async def test_savers_of_folders_check_the_folder_and_not_the_prefix(lab: Lab) -> None:
    comfy = await _start(lab)
    prompt = {
        "1": _node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": _node("PrimitiveString", value="a caption"),
        "3": _node(
            "SaveImageTextDataSetToFolder",
            images=["1", 0],
            texts=["2", 0],
            folder_name="set",
            filename_prefix="../../user/evil",
            mode="overwrite",
        ),
    }
    await comfy.entry(await comfy.prompt(prompt))
    base: Path = lab.directory / "base"
    assert (base / "user" / "evil_00000.txt").read_text() == "a caption"
    prompt["3"]["inputs"]["folder_name"] = "../user"
    assert "resolves outside" in await _error(comfy, prompt)


async def test_lists_make_one_call_a_value(lab: Lab) -> None:
    comfy = await _start(lab)
    prompt = {
        "1": _node("PrimitiveString", value="a"),
        "2": _node("PrimitiveString", value="b"),
        "3": _node("CreateList", **{"inputs.input0": ["1", 0], "inputs.input1": ["2", 0]}),
        "4": _node("RegexReplace", string=["3", 0], regex_pattern="^", replace="x"),
        "5": _node("SaveText", text=["4", 0], filename_prefix="t", format="txt"),
    }
    entry = await comfy.entry(await comfy.prompt(prompt))
    assert entry["outputs"]["5"]["text"] == ["xa", "xb"]
    assert [file["filename"] for file in entry["outputs"]["5"]["files"]] == ["t_00001.txt", "t_00002.txt"]


async def test_a_prefix_with_a_slash_behind_it_counts_from_one_again(lab: Lab) -> None:
    comfy = await _start(lab)

    async def name(prefix: str) -> str:
        prompt = {
            "1": _node("EmptyImage", width=8, height=8, batch_size=1, color=0),
            "2": _node("SaveImage", images=["1", 0], filename_prefix=prefix),
        }
        return str(comfy.images(await comfy.entry(await comfy.prompt(prompt)))[0]["filename"])

    prefixes = ("abc", "abc", "abc/", "abc/.", "x/../abc", "ab/x/..", "ab/x/..")
    assert [await name(prefix) for prefix in prefixes] == [
        "abc_00001_.png",
        "abc_00002_.png",
        "abc_00001_.png",
        "abc_00001_.png",
        "abc_00003_.png",
        "ab_00001_.png",
        "ab_00002_.png",
    ]


async def test_savers_of_animations_and_videos(lab: Lab) -> None:
    comfy = await _start(lab)
    frame = _node("EmptyImage", width=8, height=8, batch_size=1)
    webp = {"fps": 6.0, "lossless": True, "quality": 80, "method": "default", "filename_prefix": "w"}
    prompt = {
        "1": {**frame, "inputs": {**frame["inputs"], "color": 0xFF0000}},
        "2": {**frame, "inputs": {**frame["inputs"], "color": 0x0000FF, "batch_size": 2}},
        "3": _node("SaveAnimatedWEBP", images=["2", 0], **webp),
        "4": _node("CreateVideo", images=["1", 0], fps=24.0),
        "5": _node("SaveVideo", video=["4", 0], filename_prefix="video/v", format="auto", codec="auto"),
        "6": _node("PreviewAny", source="a text"),
    }
    entry = await comfy.entry(await comfy.prompt(prompt))
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert entry["outputs"] == {
        "3": {"images": [{"filename": "w_00001_.webp", "subfolder": "", "type": "output"}], "animated": [True]},
        "5": {"images": [{"filename": "v_00001_.mp4", "subfolder": "video", "type": "output"}], "animated": [True]},
        "6": {"text": ["a text"]},
    }
    with Image.open(io.BytesIO(await comfy.view(entry["outputs"]["3"]["images"][0]))) as picture:
        assert picture.format == "WEBP"
        assert picture.getexif()[0x0110].startswith("prompt:{")
