"""Fields of a request's body: whatever a backend may find in it is found, or the fields are not whole."""

from __future__ import annotations

import json

import pytest

from gateway.jobs.state.named_ids import in_request
from gateway.jobs.state.request_fields import fields_of

JSON, FORM, MULTIPART = "application/json", "application/x-www-form-urlencoded", "multipart/form-data"


def part(name: str = 'name="id"', value: str = "5", before: str = "", after: str = "") -> bytes:
    """Return a form of one field."""
    return f"--x\r\n{before}Content-Disposition: form-data; {name}\r\n{after}\r\n{value}\r\n--x--\r\n".encode()


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"id": "5"}', JSON),
        (b'{"id": 4, "x": NaN, "id": 5}', "image/png"),
        (b'{"id": 5.0}', JSON),
        (b'{"id": " 05"}', JSON),
        (b"id=%2B5", FORM),
        (b'{"response": "{\\"id\\": 5}"}', JSON),
        (b'"{\\"id\\": 5}"', JSON),
        (b'{"id": "5"}', MULTIPART),
        (b'{"id": "5"}', FORM),
        (part(), MULTIPART),
        (part(), "multipart/mixed"),
        (part(before="Content-Type: text/plain; charset=utf-8\r\n"), MULTIPART),
        (part(after="Content-Type: text/plain\r\nContent-Length: 1\r\n"), MULTIPART),
        (part('name="response"', ' {"id": 5}'), MULTIPART),
        (b"id=5&x=6", FORM),
        (json.dumps({"a": [0] * 9_000, "id": 5}).encode(), JSON),
        (b"response=" + b'{"x":' * 19 + b'{"id":5}' + b"}" * 19, FORM),
    ],
)
def test_an_id_is_found_however_it_is_written(body: bytes, kind: str) -> None:
    named = in_request([], [], fields_of(body, kind))
    assert "5" in named.ids


@pytest.mark.parametrize(
    ("body", "kind", "charset"),
    [
        (b'{"id": "5"}', JSON, None),
        (part(), MULTIPART, "utf-8"),
        (part('name="image"; filename="a.png"', "\x89PNG"), MULTIPART, None),
        (b"\x89PNG\r\n", "image/png", None),
        (b"id=5", FORM, "UTF-8"),
        (b"", JSON, None),
    ],
)
def test_what_clients_send_is_whole(body: bytes, kind: str, charset: str | None) -> None:
    assert fields_of(body, kind, charset).is_whole


@pytest.mark.parametrize(
    ("body", "kind", "charset"),
    [
        (json.dumps({"a": [0] * 10_001, "id": 5}).encode(), JSON, None),
        (b'{"id": 5, "x":' + b"[" * 21 + b"]" * 21 + b"}", JSON, None),
        (b"+AHsAIg-id+ACI-: +ACI-5+ACIAfQ-", JSON, "utf-7"),
        (b"&".join([b"a=1"] * 101), FORM, None),
        (b"response=" + b"[" * 21 + b"]" * 21, FORM, None),
        (part() * 101, MULTIPART, None),
        (part("name=id"), MULTIPART, None),
        (part('name="id"; x="filename"'), MULTIPART, None),
        (part(after="X-Any: filename\r\n"), MULTIPART, None),
        (part(value="NQ==", after="Content-Transfer-Encoding: base64\r\n"), MULTIPART, None),
        (part(value="+ADU-", after="Content-Type: text/plain; charset=utf-7\r\n"), MULTIPART, None),
        (part('name="_charset_"', "utf-7"), MULTIPART, None),
        (part().replace(b"\r\n", b"\n"), MULTIPART, None),
        (part()[:-10], MULTIPART, None),
    ],
)
def test_what_may_hold_more_is_not_whole(body: bytes, kind: str, charset: str | None) -> None:
    assert not fields_of(body, kind, charset).is_whole
