"""The node classes that a simulated ComfyUI can run. Images are real, and tell by their colour which seed made them."""

from __future__ import annotations

import io
import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image, ImageOps

from gateway.comfy import json_codec
from gateway.simulator.files import Files
from gateway.simulator.models import ModelTimes, work_in
from gateway.simulator.values import Images, ModelPart, Result

if TYPE_CHECKING:
    from gateway.simulator.stateful_nodes import State

Colour = tuple[int, int, int]


class NodeInterrupted(Exception):
    """The prompt was interrupted."""


class TorchError(RuntimeError):
    """An error that is torch's own."""


class OutOfMemoryError(TorchError):
    """As torch.OutOfMemoryError."""


class AcceleratorError(TorchError):
    """As torch.AcceleratorError: the error of a CUDA call."""


class Run(Protocol):
    """Interface of an execution to its nodes."""

    files: Files
    prompt: dict[str, Any]
    extra_data: dict[str, Any]

    async def steps(self, count: int, seconds_each: float, colour: Colour) -> None:
        """Take steps, with progress and a preview each. They take `seconds_each` at speed 1.

        Raises:
            NodeInterrupted: the prompt was interrupted.
        """

    async def told(self) -> None:
        """Wait until all queued messages are sent."""

    def show(self, value: int, maximum: int, picture: bytes, image_type: str = "image/png") -> None:
        """Send the node's progress, with an encoded picture."""

    async def load_model(self, name: str) -> None:
        """Load a model from disk."""

    async def use_model(self, part: Any) -> ModelTimes:
        """Have a model in VRAM, and return its times. `part` is a part of it, or a value of an unknown type."""

    async def spend(self, seconds: float) -> None:
        """Take so many seconds at speed 1."""

    @property
    def state(self) -> State:
        """Return the state that custom nodes keep in the process."""

    @property
    def node_id(self) -> str:
        """Return the id of the node that runs."""

    @property
    def prompt_id(self) -> str:
        """Return the prompt's id."""

    def tell(self, type_: str, data: dict[str, Any]) -> None:
        """Send a message of a custom node's own to everybody."""

    async def until(self, look: Callable[[], bool]) -> None:
        """Wait until a look finds something.

        Raises:
            NodeInterrupted: the prompt was interrupted.
        """

    @property
    def temp_mark(self) -> str:
        """Return the letters in the node's temporary names: its own while consecutive prompts have its id and class."""

    def new_temp_mark(self) -> str:
        """Return letters that no name has had."""


NodeFunction = Callable[[Run, dict[str, Any]], Awaitable[Result]]


def seed_colour(seed: int) -> Colour:
    """Return the colour of an image made from `seed`: its three lowest bytes."""
    return (seed >> 16 & 255, seed >> 8 & 255, seed & 255)


async def _slow_sampler(run: Run, inputs: dict[str, Any]) -> Result:
    colour = seed_colour(inputs["seed"])
    await run.steps(inputs["steps"], inputs["step_seconds"], colour)
    return Result((Images([Image.new("RGB", (inputs["width"], inputs["height"]), colour)]),))


async def _fail(run: Run, inputs: dict[str, Any]) -> Result:
    raise RuntimeError(inputs["message"])


async def _tell(run: Run, inputs: dict[str, Any]) -> Result:
    """Run a custom node that shows any UI output that the prompt gives, also of files that it did not write."""
    return Result((), json_codec.loads(inputs["ui"].encode()))


async def _save_over_socket(run: Run, inputs: dict[str, Any]) -> Result:
    """Send pictures as previews, as ComfyUI's custom_nodes/websocket_image_save.py does."""
    for place, image in enumerate(inputs["images"]):
        buffer = io.BytesIO()
        image.save(buffer, "PNG", quality=95, compress_level=1)
        run.show(place, len(inputs["images"]), buffer.getvalue())
    return Result(())


async def _send_much(run: Run, inputs: dict[str, Any]) -> Result:
    """Run a custom node that sends pictures, and a text or numbers, of any size. Pictures only begin as PNG files."""
    for place in range(inputs["pictures"]):
        run.show(place, inputs["pictures"], bulk_picture(place, inputs["picture_bytes"]))
        # Past a bound of what waits a node waits for its socket: else the pictures would be in memory all at once.
        await run.told()
    ui: dict[str, Any] = {}
    if inputs["text_bytes"]:
        ui["text"] = ["x" * inputs["text_bytes"]]
    if inputs["values"]:
        ui["values"] = [0] * inputs["values"]
    return Result((), ui or None)


def bulk_picture(place: int, size: int) -> bytes:
    """Return the picture of `size` bytes that a BulkNode sends as the one at `place`."""
    return (b"\x89PNG\r\n\x1a\n%08d" % place).ljust(size, b"\xa5")


async def _pick(run: Run, inputs: dict[str, Any]) -> Result:
    """Run a custom node that leaves it to ComfyUI to compare a name with the list of the input folder."""
    return Result((inputs["picture"],), {"text": [inputs["picture"]]})


async def _empty_image(run: Run, inputs: dict[str, Any]) -> Result:
    image = Image.new("RGB", (inputs["width"], inputs["height"]), seed_colour(inputs["color"]))
    return Result((Images([image] * inputs["batch_size"]),))


async def _invert(run: Run, inputs: dict[str, Any]) -> Result:
    return Result((Images(ImageOps.invert(image.convert("RGB")) for image in inputs["image"]),))


async def _scale(run: Run, inputs: dict[str, Any]) -> Result:
    def size(image: Image.Image) -> tuple[int, int]:
        width, height = inputs["width"], inputs["height"]
        width = width or max(1, round(image.width * height / max(image.height, 1)))
        return width, height or max(1, round(image.height * width / max(image.width, 1)))

    return Result((Images(image.resize(size(image)) for image in inputs["image"]),))


async def _same_image(run: Run, inputs: dict[str, Any]) -> Result:
    return Result((inputs["image"],))


async def _load_image(run: Run, inputs: dict[str, Any]) -> Result:
    image = run.files.open_image(inputs["image"])
    mask = image.getchannel("A") if "A" in image.getbands() else Image.new("L", image.size, 0)
    return Result((Images([image.convert("RGB")]), mask))


async def _save(run: Run, inputs: dict[str, Any]) -> Result:
    saved = run.files.save_images(inputs["images"], inputs["filename_prefix"], run.prompt, run.extra_data)
    return Result((inputs["images"],), {"images": saved})


async def _preview(run: Run, inputs: dict[str, Any]) -> Result:
    # An undeclared input, which a link may fill in.
    prefix = inputs.get("filename_prefix", "ComfyUI")
    saved = run.files.save_images(inputs["images"], prefix, run.prompt, run.extra_data, run.temp_mark)
    return Result((inputs["images"],), {"images": saved})


async def _load_checkpoint(run: Run, inputs: dict[str, Any]) -> Result:
    name = inputs["ckpt_name"]
    await run.load_model(name)
    return Result(tuple(ModelPart(kind, name) for kind in ("model", "clip", "vae")))


def _loader(input_name: str, kind: str) -> NodeFunction:
    async def load(run: Run, inputs: dict[str, Any]) -> Result:
        await run.load_model(inputs[input_name])
        return Result((ModelPart(kind, inputs[input_name]),))

    return load


async def _load_lora(run: Run, inputs: dict[str, Any]) -> Result:
    return Result((inputs["model"], inputs["clip"]))


async def _encode_text(run: Run, inputs: dict[str, Any]) -> Result:
    await run.use_model(inputs["clip"])
    return Result((("conditioning", inputs["text"]),))


async def _empty_latent(run: Run, inputs: dict[str, Any]) -> Result:
    latent = {"width": inputs["width"], "height": inputs["height"], "batch_size": inputs["batch_size"], "seed": 0}
    return Result((latent,))


async def _sample(run: Run, inputs: dict[str, Any]) -> Result:
    seed = inputs.get("seed", inputs.get("noise_seed", 0))
    steps, latent = inputs["steps"], inputs["latent_image"]
    times = await run.use_model(inputs["model"])
    seconds = work_in(str(inputs[name]) for name in ("positive", "negative"))
    if seconds is None:
        seconds = times.sampling(steps, inputs["sampler_name"], _pixels(latent))
    await run.steps(steps, seconds / steps, seed_colour(seed))
    return Result(({**latent, "seed": seed},))


def _pixels(latent: dict[str, Any]) -> float:
    return float(latent["width"] * latent["height"] * latent["batch_size"])


async def _decode(run: Run, inputs: dict[str, Any]) -> Result:
    latent = inputs["samples"]
    times = await run.use_model(inputs["vae"])
    await run.spend(times.decoding(_pixels(latent)))
    image = Image.new("RGB", (latent["width"], latent["height"]), seed_colour(latent["seed"]))
    return Result((Images([image] * latent["batch_size"]),))


async def _encode_image(run: Run, inputs: dict[str, Any]) -> Result:
    await run.use_model(inputs["vae"])
    image = inputs["pixels"][0]
    red, green, blue = image.convert("RGB").resize((1, 1)).getpixel((0, 0))
    seed = red << 16 | green << 8 | blue
    return Result(({"width": image.width, "height": image.height, "batch_size": 1, "seed": seed},))


async def _named(run: Run, inputs: dict[str, Any]) -> Result:
    return Result((("loaded", *inputs.values()),))


async def _value(run: Run, inputs: dict[str, Any]) -> Result:
    return Result((inputs["value"],))


async def _concatenate(run: Run, inputs: dict[str, Any]) -> Result:
    return Result((f"{inputs['string_a']}{inputs.get('delimiter', '')}{inputs['string_b']}",))


FUNCTIONS: dict[str, NodeFunction] = {
    "SlowSampler": _slow_sampler,
    "FailNode": _fail,
    "TellNode": _tell,
    "BulkNode": _send_much,
    "SaveImageWebsocket": _save_over_socket,
    "PickNode": _pick,
    "EmptyImage": _empty_image,
    "ImageInvert": _invert,
    "ImageScale": _scale,
    "ImageBlur": _same_image,
    "LoadImage": _load_image,
    "LoadImageOutput": _load_image,
    "SaveImage": _save,
    "PreviewImage": _preview,
    "CheckpointLoaderSimple": _load_checkpoint,
    "LoraLoader": _load_lora,
    "CLIPTextEncode": _encode_text,
    "EmptyLatentImage": _empty_latent,
    "KSampler": _sample,
    "KSamplerAdvanced": _sample,
    "VAEDecode": _decode,
    "VAEEncode": _encode_image,
    "VAELoader": _loader("vae_name", "vae"),
    "UNETLoader": _loader("unet_name", "model"),
    "CLIPLoader": _loader("clip_name", "clip"),
    "ControlNetLoader": _named,
    "UpscaleModelLoader": _named,
    "PrimitiveInt": _value,
    "StringConcatenate": _concatenate,
}


def preview_image(colour: Colour, value: int, maximum: int) -> Image.Image:
    """Return a picture of a sampler's progress: its colour comes up from black."""
    share = math.sqrt(value / max(maximum, 1))
    dimmed = tuple(round(part * share) for part in colour)
    return Image.new("RGB", (64, 64), dimmed)
