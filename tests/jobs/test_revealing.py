"""Secret names in what a backend says become names that the tenant knows."""

from __future__ import annotations

import json

import pytest

from gateway.jobs.revealing import MAX_DEPTH, reveal, reveal_bytes, reveal_json, reveal_value

HEX, OTHER = "0f" * 16, "1e" * 16
NAMES = {HEX: 'my/"cat".png'}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"u/{HEX}/f/f.png", 'my/"cat".png'),
        (f"Invalid file: /in/u/{HEX}/f/f~12345678 (1).png!", 'Invalid file: /in/my/"cat".png!'),
        (f"u\\{HEX}\\f\\f.png", 'my/"cat".png'),
        (f"u-{HEX}.png", 'my/"cat".png'),
        (f"u/{OTHER}/f/f.png", ""),
        (f"/base/output/o/{HEX}/f/deep/pic_00001_.png", "/base/output/deep/pic_00001_.png"),
        (f"subfolder=o%2F{HEX}%2Ff&x", "subfolder=&x"),
        (f"subfolder=x%2Fo%2F{HEX}%2Ff&x", "subfolder=x%2F&x"),
        (f"image=a%5cu%5C{HEX}%5Cf%5Cf.png", 'image=a%5cmy/"cat".png'),
        (f"o/{HEX}", ""),
        (f"menu/{HEX}/f and video/{HEX}", f"menu/{HEX}/f and video/{HEX}"),
        ("a text", "a text"),
    ],
)
def test_texts(text: str, told: str) -> None:
    assert reveal(text, NAMES) == told
    assert json.loads(reveal_json(json.dumps({"a": [text]}).encode(), NAMES)) == {"a": [told]}
    assert reveal_value({"a": [text]}, NAMES) == {"a": [told]}
    assert reveal_bytes(text.encode(), NAMES) == told.encode()


def test_a_text_after_a_line_end_in_json() -> None:
    raw = json.dumps(f"x\nu/{HEX}/f/f.png").encode()
    assert json.loads(reveal_json(raw, NAMES)) == 'x\nmy/"cat".png'


def test_what_lies_too_deep_is_left_out() -> None:
    value: object = f"o/{HEX}/f/x"
    for _ in range(MAX_DEPTH + 2):
        value = [value]
    assert HEX not in json.dumps(reveal_value(value, NAMES))
