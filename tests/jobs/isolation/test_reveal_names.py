"""Secret names in what a backend says become names that the tenant knows."""

from __future__ import annotations

import json

import pytest

from gateway.jobs.isolation.reveal_names import (
    MAX_DEPTH,
    STEP,
    holding_secret,
    reveal,
    reveal_bytes,
    reveal_json,
    reveal_value,
    revealing_json,
    revealing_value,
)

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


@pytest.mark.parametrize("folder", [f"o/{HEX}", f"o/{HEX}/f", f"o\\{HEX}\\f", f"u/{HEX}", f"u/{HEX}/f"])
@pytest.mark.parametrize("rest", ['"', "\n", "\f", "\t.", '\\"', "\\"])
def test_what_follows_a_folder_in_a_text_is_left_as_it_is(folder: str, rest: str) -> None:
    raw = json.dumps({"text": [f"see {folder}{rest} and more"]}).encode()
    (told,) = json.loads(reveal_json(raw, {}))["text"]
    assert HEX not in told
    assert told.endswith(f"{rest.removeprefix(chr(92)) if folder[0] == 'o' and rest == chr(92) else rest} and more")


def test_json_in_a_text_stays_json() -> None:
    for folder in (f"o/{HEX}/f", f"o/{HEX}", f"u/{HEX}/f/f.png"):
        text = json.dumps({"filename": "a.png", "subfolder": folder, "type": "output"})
        for _ in range(3):
            raw = json.dumps({"text": [text]}).encode()
            assert HEX.encode() not in reveal_json(raw, {})
            shown = json.loads(reveal_json(raw, {}))["text"][0]
            assert reveal(text, {}) == shown
            while isinstance(shown, str):
                shown = json.loads(shown)
            assert shown["type"] == "output"
            text = json.dumps(text)


def test_what_lies_too_deep_is_left_out() -> None:
    value: object = f"o/{HEX}/f/x"
    for _ in range(MAX_DEPTH + 2):
        value = [value]
    assert HEX not in json.dumps(reveal_value(value, NAMES))


@pytest.mark.parametrize("before", ["/", " ", "x", "\n", "é", "%2F", "o/"])
def test_names_where_a_long_text_is_cut(before: str) -> None:
    """What is a name in a short text is one in a long text, and nothing else is, wherever the text is cut."""
    name = f"u/{HEX}/f/f~12345678 (1).png"
    short = reveal(before + name + name, NAMES)
    for place in range(STEP - 105, STEP + 10):
        filler = "_" * (place - len(before) - 2)
        text = f"{filler}__{before}{name}{name}____"
        assert reveal_value(text, NAMES) == f"{filler}__{short}____"
        filler = filler[: 2 - len(json.dumps(before + "a"))]
        raw = json.dumps(f"{filler}{before}{name}{name}____").encode()
        assert json.loads(reveal_json(raw, NAMES)) == f"{filler}{short}____"


def test_a_long_text_is_looked_through_in_short_steps() -> None:
    raw = b'"%b o/%b/f %b"' % (b"o/" * 2 * STEP, HEX.encode(), b"o/" * STEP)
    assert sum(1 for _ in holding_secret(raw)) >= 2
    assert sum(1 for _ in revealing_json(raw, NAMES)) >= 4
    assert sum(1 for _ in revealing_value([raw.decode()] * 3, NAMES)) >= 12
