"""Odd descriptions of node classes, as a broken custom node or no ComfyUI at all may give them."""

from __future__ import annotations

from typing import Any

_OUTPUT: dict[str, Any] = {"output": ["IMAGE"], "output_node": False}


def _with(**parts: Any) -> dict[str, Any]:
    return {"input": parts, **_OUTPUT}


def _nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


_LIST = [["a.png", "b.png"], {"image_upload": True}]

# Descriptions that the reader drops, by what is wrong.
DROPPED: dict[str, Any] = {
    "null": None,
    "an array": ["input"],
    "a text": "input",
    "a number": 5,
    "an empty object": {},
    "no input": dict(_OUTPUT),
    "input is null": {"input": None, **_OUTPUT},
    "input is an array": {"input": [["a", "STRING"]], **_OUTPUT},
    "input is a text": {"input": "required", **_OUTPUT},
    "required is an array": _with(required=["image"]),
    "required is a text": _with(required="image"),
    "optional is a number": _with(required={}, optional=3),
    "hidden is an array": _with(required={}, hidden=["PROMPT"]),
    "an input is null": _with(required={"image": None}),
    "an input is a number": _with(required={"image": 1}),
    "an input is an object": _with(required={"image": {"type": "IMAGE"}}),
    "an input is an empty text": _with(required={"image": ""}),
    "an input is an empty list": _with(required={"image": []}),
    "a type is null": _with(required={"image": [None, {}]}),
    "a type is an object": _with(required={"image": [{"a": 1}, {}]}),
    "a type is a number": _with(optional={"image": [3]}),
    "a hidden input is a number": _with(hidden={"image": 7}),
    "a hidden input is an object": _with(hidden={"image": {"type": "PROMPT"}}),
    "no output": {"input": {"required": {}}},
    "output is null": {"input": {"required": {}}, "output": None},
    "output is a text": {"input": {"required": {}}, "output": "IMAGE"},
    "output is an object": {"input": {"required": {}}, "output": {"0": "IMAGE"}},
    "an output is null": {"input": {"required": {}}, "output": ["IMAGE", None]},
    "an output is an object": {"input": {"required": {}}, "output": [{"type": "IMAGE"}]},
    "too deep": _with(required={"image": ["STRING", {"default": _nested(200)}]}),
}

# Descriptions that the reader keeps without what is wrong.
REPAIRED: dict[str, Any] = {
    "an input and a hidden input": _with(required={"image": _LIST}, hidden={"image": "PROMPT"}),
    "an input and a hidden input of V3": _with(required={"image": _LIST}, hidden={"image": ["PROMPT"]}),
    "required and optional": _with(required={"image": _LIST}, optional={"image": [["c.png"], {"image_upload": True}]}),
    "all three": _with(required={"image": _LIST}, optional={"image": _LIST}, hidden={"image": "PROMPT"}),
    "an input that is a text": _with(required={"text": "STRING"}),
    "options are an array": _with(required={"image": [["a.png"], ["image_upload"]]}),
    "options are a text": _with(required={"image": [["a.png"], "image_upload"]}),
    "options are null": _with(required={"model": ["COMBO", None]}),
    "choices are a text": _with(required={"model": ["COMBO", {"options": "abc"}]}),
    "choices are an object": _with(required={"model": ["COMBO", {"options": {"a": 1}, "image_upload": True}]}),
    "a part is null": _with(required={"image": _LIST}, optional=None),
    "another part": _with(required={"image": _LIST}, advanced={"image": "X"}, more=None),
}

# Descriptions that look odd, and are as they may be.
KEPT: dict[str, Any] = {
    "optional before required": _with(
        optional={"mask": [["m.png"], {"image_upload": True}]}, required={"image": _LIST}
    ),
    "choices that are objects": _with(required={"lora": [[{"content": "a", "image": None}, {"content": "b"}, "c"]]}),
    "choices of all kinds": _with(required={"x": [["a", 1, 1.5, True, None, ["b"], {}]]}),
    "no inputs": _with(),
    "no choices": _with(required={"x": [[], {"image_upload": True}], "y": ["COMBO"], "z": ["COMBO", {}]}),
    "more behind the options": _with(required={"x": ["INT", {"default": 1}, {"more": 1}]}),
    "the gateway's own mark": _with(required={"x": [["\x00file-list-0\x00"], {"tooltip": "x"}]}),
    "options of odd values": _with(required={"x": ["INT", {"min": "a", "max": [], "default": {}}]}),
    "an output that is a list": {"input": {"required": {}}, "output": [["a", "b"], "IMAGE"], "output_node": "yes"},
    "half a pair": _with(required={"x": [["\ud800.png"], {"tooltip": "\udfff"}]}),
    "a long number": _with(required={"x": ["INT", {"max": 2**70}]}),
}
