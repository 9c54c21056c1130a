"""Stock node classes that isolation must bound: texts and code, switches and lists, files that they open and write.

They do what ComfyUI 0.33.0's do, holes included: nothing here checks what ComfyUI does not check.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from PIL import Image

from gateway.simulator.expressions import evaluate
from gateway.simulator.files import OutsideFolder
from gateway.simulator.nodes import NodeFunction, Run
from gateway.simulator.values import File3D, Images, Result, Video, load_audio

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_WEBP_METHODS = {"default": 4, "fastest": 0, "slowest": 6}
_EXIF_MAKE, _EXIF_MODEL = 0x010F, 0x0110


async def _value(_: Run, inputs: dict[str, Any]) -> Result:
    return Result((inputs["value"],))


async def _format(_: Run, inputs: dict[str, Any]) -> Result:
    """Format a text with Python's own str.format, whose fields reach attributes of linked inputs."""
    return Result((inputs["f_string"].format(**inputs["values"]),))


async def _replace(_: Run, inputs: dict[str, Any]) -> Result:
    flags = {"case_insensitive": re.IGNORECASE, "multiline": re.MULTILINE, "dotall": re.DOTALL}
    chosen = sum(flag for name, flag in flags.items() if inputs.get(name, name == "case_insensitive"))
    pattern, text = inputs["regex_pattern"], inputs["string"]
    return Result((re.sub(pattern, inputs["replace"], text, count=inputs.get("count", 0), flags=chosen),))


async def _evaluate(_: Run, inputs: dict[str, Any]) -> Result:
    """Evaluate an expression, which calls methods of linked inputs."""
    expression, values = inputs["expression"], inputs["values"]
    if not expression.strip():
        raise ValueError("Expression cannot be empty.")
    result = evaluate(expression, {**values, "values": list(values.values())})
    if not isinstance(result, (int, float)):
        kind = type(result).__name__
        raise ValueError(f"Math Expression '{expression}' must evaluate to a numeric result, got {kind}: {result!r}")
    return Result((float(result), int(result), bool(result)))


async def _switch(_: Run, inputs: dict[str, Any]) -> Result:
    """Hand on one of two values. Both branches have run; ComfyUI runs the one that is needed."""
    return Result((inputs["on_true"] if inputs["switch"] else inputs["on_false"],))


async def _list(_: Run, inputs: dict[str, Any]) -> Result:
    return Result(([value for values in inputs["inputs"].values() for value in values],))


async def _load_audio(run: Run, inputs: dict[str, Any]) -> Result:
    return Result((load_audio(run.files.path_of(inputs["audio"])),))


async def _paint(run: Run, inputs: dict[str, Any]) -> Result:
    if inputs.get("image"):
        canvas = inputs["image"][0].convert("RGB")
    else:
        canvas = Image.new("RGB", (inputs["width"], inputs["height"]), inputs.get("bg_color", "#000000"))
    mask = Image.new("L", canvas.size, 0)
    if inputs["mask"].strip():
        painted = run.files.open_image(inputs["mask"]).convert("RGBA").resize(canvas.size)
        mask = painted.getchannel("A")
        canvas.paste(painted, mask=mask)
    image = Images([canvas])
    saved = run.files.save_images(image, "ComfyUI", run.prompt, run.extra_data, run.new_temp_mark())
    return Result((image, mask), {"images": saved, "animated": (False,)})


async def _capture(run: Run, inputs: dict[str, Any]) -> Result:
    return Result((Images([run.files.open_image(inputs["image"]).convert("RGB")]),))


async def _create_video(_: Run, inputs: dict[str, Any]) -> Result:
    return Result((Video(inputs["images"], fps=inputs["fps"]),))


async def _load_video(run: Run, inputs: dict[str, Any]) -> Result:
    return Result((Video(path=run.files.path_of(inputs["file"])),))


async def _video_components(_: Run, inputs: dict[str, Any]) -> Result:
    video: Video = inputs["video"]
    return Result((video.get_components(), None, video.fps, 8, "bt709"))


async def _load_3d(run: Run, inputs: dict[str, Any]) -> Result:
    """Open the files that the widget's object names; nothing has checked them."""
    widget, name = inputs["image"], inputs["model_file"]
    image, masked, normal = (run.files.open_image(widget[key]) for key in ("image", "mask", "normal"))
    mask = masked.getchannel("A") if "A" in masked.getbands() else Image.new("L", masked.size, 0)
    recording = Video(path=run.files.path_of(widget["recording"])) if widget["recording"] else None
    has_model = bool(name) and name != "none"
    model = File3D(run.files.path_of(name)) if has_model else None
    pictures = (Images([each.convert("RGB")]) for each in (image, normal))
    return Result(
        (next(pictures), mask, name if has_model else "", next(pictures), widget["camera_info"], recording, model, [])
    )


async def _load_folder(run: Run, inputs: dict[str, Any]) -> Result:
    folder = _subfolder(run.files.folder("input"), inputs["folder"])
    files = [entry for entry in sorted(folder.iterdir()) if _is_picture(entry)]
    return Result((_opened(files),))


async def _load_folder_with_texts(run: Run, inputs: dict[str, Any]) -> Result:
    """Load a folder and the folders in it, each picture with the text beside it."""
    files: list[Path] = []
    for entry in sorted(_subfolder(run.files.folder("input"), inputs["folder"]).iterdir()):
        if _is_picture(entry):
            files.append(entry)
        elif entry.is_dir():
            repeats = entry.name.split("_")[0]
            inner = [each for each in sorted(entry.iterdir()) if _is_picture(each)]
            files += inner * (int(repeats) if repeats.isdecimal() else 1)
    captions = [file.with_suffix(".txt") for file in files]
    texts = [caption.read_text("utf-8").strip() if caption.exists() else "" for caption in captions]
    return Result((_opened(files), texts))


def _subfolder(root: Path, name: str) -> Path:
    target = Path(os.path.abspath(root / name))
    if root.resolve() not in (target.resolve(), *target.resolve().parents):
        raise OutsideFolder(f"Invalid folder name {name!r}: resolves outside of {root}")
    return target


def _is_picture(path: Path) -> bool:
    return path.name.lower().endswith(_PICTURES)


def _opened(files: list[Path]) -> list[Images]:
    if not files:
        raise ValueError("No valid images found in input")
    opened = []
    for file in files:
        with Image.open(file) as image:
            opened.append(Images([image.convert("RGB")]))
    return opened


async def _save_to_folder(run: Run, inputs: dict[str, Any]) -> Result:
    """Save pictures, and texts beside them. ComfyUI checks the folder, and not the prefix: ``../../`` leads out."""
    prefix, is_new = inputs["filename_prefix"][0], inputs["mode"][0] != "overwrite"
    folder = _subfolder(run.files.folder("output"), inputs["folder_name"][0])
    folder.mkdir(parents=True, exist_ok=True)
    images = [image for batch in inputs["images"] for image in batch]
    if is_new:
        _, prefix, counter, _ = run.files.place("output", f"{inputs['folder_name'][0]}/{prefix}", (1, 1))
        prefix = f"{prefix}_{counter:05}"
    texts = inputs.get("texts") or []
    for number, image in enumerate(images):
        path = os.path.join(folder, f"{prefix}_{number:05}.png")
        image.save(path)
        if number < len(texts):
            _write(path.replace(".png", ".txt"), texts[number])
    return Result(())


def _write(path: str, text: str) -> None:
    Path(path).write_text(text, "utf-8")


async def _save_dataset(run: Run, inputs: dict[str, Any]) -> Result:
    root = run.files.datasets
    folder = _subfolder(root, inputs["folder_name"][0])
    if folder == root:
        raise ValueError("folder_name must name a subfolder of the datasets directory, e.g. 'my_dataset'.")
    folder.mkdir(parents=True, exist_ok=True)
    data = {"latents": inputs["latents"], "conditioning": inputs["conditioning"]}
    (folder / "shard_0000.pkl").write_text(json.dumps(data), "utf-8")
    (folder / "metadata.json").write_text(json.dumps({"num_samples": len(data["latents"])}), "utf-8")
    return Result(())


async def _load_dataset(run: Run, inputs: dict[str, Any]) -> Result:
    folder = _subfolder(run.files.datasets, inputs["folder_name"])
    shards = sorted(folder.glob("shard_*.pkl")) if folder.is_dir() else []
    if not shards:
        raise ValueError(f"No shard files found in {folder}")
    loaded = [json.loads(shard.read_text("utf-8")) for shard in shards]
    return Result(tuple([item for each in loaded for item in each[key]] for key in ("latents", "conditioning")))


async def _preview_any(_: Run, inputs: dict[str, Any]) -> Result:
    source = inputs.get("source")
    text = "None" if source is None else str(source)
    if source is not None and not isinstance(source, (str, int, float)):
        try:
            text = json.dumps(source, indent=4, ensure_ascii=False)
        except (TypeError, ValueError):
            text = str(source)
    return Result((text,), {"text": [text]})


async def _save_text(run: Run, inputs: dict[str, Any]) -> Result:
    text, suffix = inputs["text"], inputs["format"]
    folder, filename, counter, subfolder = run.files.place("output", inputs["filename_prefix"], (1, 1))
    name = f"{filename}_{counter:05}.{suffix}"
    (folder / name).write_text(text, "utf-8")
    saved = {"filename": name, "subfolder": subfolder, "type": "output"}
    return Result((text,), {"text": [text], "files": [saved]})


async def _load_mask(run: Run, inputs: dict[str, Any]) -> Result:
    image = run.files.open_image(inputs["image"]).convert("RGBA")
    return Result((image.getchannel(inputs["channel"][0].upper()),))


def _next_file(run: Run, prefix: str, suffix: str, size: tuple[int, int] = (1, 1)) -> tuple[Path, dict[str, str]]:
    """Return the path of a saver's next file, and what the saver tells of it."""
    folder, filename, counter, subfolder = run.files.place("output", prefix, size)
    name = f"{filename}_{counter:05}_.{suffix}"
    return folder / name, {"filename": name, "subfolder": subfolder, "type": "output"}


async def _save_webp(run: Run, inputs: dict[str, Any]) -> Result:
    """Save a batch as one animation, with the prompt in its EXIF data (comfy_api/latest/_ui.py, save_animated_webp)."""
    images: Images = inputs["images"]
    path, saved = _next_file(run, inputs["filename_prefix"], "webp", images[0].size)
    exif = images[0].getexif()
    exif[_EXIF_MODEL] = f"prompt:{json.dumps(run.prompt)}"
    for place, (key, value) in enumerate((run.extra_data.get("extra_pnginfo") or {}).items()):
        exif[_EXIF_MAKE - place] = f"{key}:{json.dumps(value)}"
    images[0].save(
        path,
        save_all=True,
        duration=int(1000.0 / inputs["fps"]),
        append_images=list(images[1:]),
        exif=exif,
        lossless=inputs["lossless"],
        quality=inputs["quality"],
        method=_WEBP_METHODS[inputs["method"]],
    )
    return Result((images,), {"images": [saved], "animated": (len(images) > 1,)})


async def _save_video(run: Run, inputs: dict[str, Any]) -> Result:
    """Save a video under its name. The file holds the first frame alone, as a PNG picture: there is no encoder here."""
    video: Video = inputs["video"]
    suffix = "mp4" if inputs["format"] == "auto" else str(inputs["format"])
    path, saved = _next_file(run, inputs["filename_prefix"], suffix, video.get_components()[0].size)
    video.save_to(str(path))
    return Result((video,), {"images": [saved], "animated": (True,)})


STOCK_FUNCTIONS: dict[str, NodeFunction] = {
    "PrimitiveString": _value,
    "PrimitiveStringMultiline": _value,
    "StringFormat": _format,
    "RegexReplace": _replace,
    "ComfyMathExpression": _evaluate,
    "ComfySwitchNode": _switch,
    "CreateList": _list,
    "RecordAudio": _load_audio,
    "LoadAudio": _load_audio,
    "Painter": _paint,
    "WebcamCapture": _capture,
    "CreateVideo": _create_video,
    "GetVideoComponents": _video_components,
    "LoadVideo": _load_video,
    "Load3D": _load_3d,
    "LoadImageDataSetFromFolder": _load_folder,
    "LoadImageTextDataSetFromFolder": _load_folder_with_texts,
    "SaveImageDataSetToFolder": _save_to_folder,
    "SaveImageTextDataSetToFolder": _save_to_folder,
    "SaveTrainingDataset": _save_dataset,
    "LoadTrainingDataset": _load_dataset,
    "PreviewAny": _preview_any,
    "SaveText": _save_text,
    "LoadImageMask": _load_mask,
    "SaveAnimatedWEBP": _save_webp,
    "SaveVideo": _save_video,
}
