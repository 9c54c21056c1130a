"""Errors without the host's folders."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.comfy.jobs_api import job_of_history
from gateway.comfy.redaction import redact_entry, redact_error, redact_value, redacting_error, without_paths

CASES = {
    "/root/ComfyUI/input/x.png": "…/x.png",
    "[Errno 2] No such file: '/root/ComfyUI/input/x.png'": "[Errno 2] No such file: '…/x.png'",
    'File "/opt/comfy ui/nodes.py", line 5, in load\n  open(x)': 'File "…/nodes.py", line 5, in load\n  open(x)',
    "'/mnt/My Drive/in put/a b.png' is missing": "'…/a b.png' is missing",
    "'/mnt/My Drive/in put/a b' is missing": "'…/a b' is missing",
    "see (/a/b/c.txt).": "see (…/c.txt).",
    "path=/a/b/c, next": "path=…/c, next",
    "in:/a/b": "in:…/b",
    "[/a/b, /c/d]": "[…/b, …/d]",
    "/x.png": "…/x.png",
    "//server/share/x.png": "…/x.png",
    "/root/ComfyUI/input/": "…/input",
    "/root/My(Dir)[1]/x.png": "…/x.png",
    "C:\\Users\\John Smith\\ComfyUI\\x.png is gone": "…/x.png is gone",
    "'C:\\\\Users\\\\me\\\\x.png'": "'…/x.png'",
    'File "D:\\ai\\a b.py", line 3': 'File "…/a b.py", line 3',
    "d:/ai/models/x.ckpt": "…/x.ckpt",
    "\\\\nas\\share\\a\\x.png": "…/x.png",
    "'\\\\\\\\nas\\\\share\\\\x.png'": "'…/x.png'",
    "\\\\?\\C:\\a\\x.png": "…/x.png",
    "file:///root/a/x.png": "…/x.png",
    "file://C:/a/x.png and FILE:/etc/passwd": "…/x.png and …/passwd",
    "not within '/root/ComfyUI/output'": "not within '…/output'",
    "Saving image outside the output folder is not allowed.\n full_output_folder: /r/o/../x\n commonpath: /r": (
        "Saving image outside the output folder is not allowed.\n full_output_folder: …/x\n commonpath: /r"
    ),
    "@/root/a/b": "@…/b",
    "x\t/a/b\r\n/c/d.e": "x\t…/b\r\n…/d.e",
}
LEFT = [
    "",
    "and/or",
    "1/2 of 3/4",
    "2026/11/27, 27/11/2026",
    "sdxl/base.safetensors",
    "sub\\style.safetensors",
    "a/b/c/d.png [output]",
    "./a/b.png ../c/d.png ~/x/y.png",
    "https://example.org/a/b?c=/d/e#/f/g",
    "see http://127.0.0.1:8188/view?filename=x.png, wss://h/ws.",
    "s3://bucket/key/x.png",
    "a / b // c",
    "/imagine a cat, style 1/2",
    "'/imagine a cat, 16/9 or 4/3'",
    "'\\n\\nhello\\nworld'",
    "(masterpiece:1.2), red/blue hair, w/o hat",
    "image/png; text/html",
    "</div></p><br/>",
    "{folder}/a/b.png and %date%/x/y.png",
    "5 km/h, N/A, TCP/IP, and/or/nor",
    "RuntimeError: CUDA error: out of memory",
    "…/x.png",
    "value 5 / 10",
    "/tmp is one name alone",
    "a:b/c",
    "16:9/4:3",
    "\\",
    "\\d+\\w",
]


@pytest.mark.parametrize("text", CASES)
def test_of_absolute_paths_the_last_name_is_left(text: str) -> None:
    assert without_paths(text) == CASES[text]
    assert without_paths(CASES[text]) == CASES[text]


@pytest.mark.parametrize("text", LEFT)
def test_what_is_no_absolute_path_stays(text: str) -> None:
    assert without_paths(text) == text


# Written apart from the code: what plainly is an absolute path.
_PLAIN = re.compile(
    r"""(?:^|[\s'"(\[{=:,;])(?:/[\w.-]+/[\w.-]+|[A-Za-z]:[\\/]\w+[\\/]\w|\\\\\w+\\\w+\\\w)|(?<!\w)file:/+\w""",
    re.MULTILINE,
)
_URL = re.compile(r"""[A-Za-z][A-Za-z0-9+.-]*://[^\s'"`<>]+""")
_TOKENS = r"""/ \ \\ // a b.png C: file: https://h ' " … …/ . : = ( ) [ ] é 1 - ` < > | ~ root \n , % ?"""
_PIECES = st.sampled_from([*_TOKENS.split(), " ", "\n"])


@given(st.text(max_size=60) | st.lists(_PIECES, max_size=24).map("".join))
@example("'/a/b c' /d e/f")
def test_no_absolute_path_is_left_and_twice_is_once(text: str) -> None:
    redacted = without_paths(text)
    assert without_paths(redacted) == redacted
    assert not _PLAIN.search(_URL.sub("URL", redacted)), redacted


@given(st.lists(st.from_regex(r"[\w. -]{1,12}", fullmatch=True).filter(str.strip), min_size=3, max_size=6))
def test_nothing_but_the_last_name_of_a_quoted_path(names: list[str]) -> None:
    names[0] = "r" + names[0].replace(" ", "_")
    for start, separator in (("/", "/"), ("C:\\", "\\"), ("c:/", "/")):
        path = start + separator.join(f"n{n}-{name}" for n, name in enumerate(names))
        redacted = without_paths(f"can't open '{path}': no")
        assert not any(f"n{n}-" in redacted for n in range(len(names) - 1)), redacted
        assert redacted.startswith("can't open '…/n")
        assert redacted.endswith("': no")


MADE = ["/" * 200_000, "'/a/" * 100_000, "\\" * 200_000, "C:\\a b " * 50_000, "a/b " * 100_000, "a." * 200_000 + "/"]


@pytest.mark.parametrize("text", MADE, ids=range(len(MADE)))
def test_a_text_that_is_made_for_it_takes_no_time(text: str) -> None:
    """By the square of its length each would take longer than any test may."""
    assert len(without_paths(text)) <= len(text)


ERROR: dict[str, Any] = {
    "prompt_id": "p",
    "node_id": "1",
    "node_type": "LoadImage",
    "executed": [],
    "exception_message": "no file '/root/ComfyUI/input/x.png'",
    "exception_type": "FileNotFoundError",
    "traceback": ['  File "/root/ComfyUI/execution.py", line 1, in f\n'],
    "current_inputs": {"image": ["/root/in/x.png", 5, {"a": ["C:\\a\\b\\y.png"]}], "text": ["red/blue"]},
    "current_outputs": ["2"],
    "timestamp": 5,
}
TOLD = {
    **ERROR,
    "exception_message": "no file '…/x.png'",
    "traceback": ['  File "…/execution.py", line 1, in f\n'],
    "current_inputs": {"image": ["…/x.png", 5, {"a": ["…/y.png"]}], "text": ["red/blue"]},
}


def test_an_error_and_the_entry_that_holds_it() -> None:
    before = str(ERROR)
    assert redact_error(ERROR) == TOLD
    messages = [["execution_start", {"prompt_id": "p", "timestamp": 1}], ["execution_error", ERROR], "odd", [1, 2, 3]]
    prompt = [1, "p", {}, {"create_time": 1}, []]
    entry = {"prompt": prompt, "outputs": {}, "status": {"status_str": "error", "messages": messages}}
    redacted = redact_entry(entry)
    assert redacted["status"]["messages"] == [messages[0], ["execution_error", TOLD], "odd", [1, 2, 3]]
    assert "/root" not in str(job_of_history("p", redacted, include_outputs=True))
    assert str(ERROR) == before
    for odd in ({}, {"status": None}, {"status": {"messages": 5}}, {"status": {"messages": {"a": 1}}}):
        assert redact_entry(odd) == odd


def test_what_lies_deep_is_left_out() -> None:
    value: Any = "/root/a/b"
    for _ in range(900):
        value = [value]
    assert "/root" not in str(redact_value(value))


def test_of_a_long_text_the_beginning_is_told() -> None:
    """A path is looked for in each place of a text: in a megabyte of slashes that would take half a second."""
    told = redact_error({**ERROR, "exception_message": "/a/b.png " * 100_000})
    assert told["exception_message"].startswith("…/b.png …/b.png ")
    assert told["exception_message"].endswith("… (895904 characters more)")


def test_an_error_of_many_texts_is_redacted_in_short_steps() -> None:
    inputs = {"text": ["/a/b.png"] * 1_000}
    assert sum(1 for _ in redacting_error({**ERROR, "current_inputs": inputs})) > 1_000
