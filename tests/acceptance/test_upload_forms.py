"""Forms as odd clients send them: the same status and name as from a ComfyUI, and the name works from there on."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode

from tests.support.comfy_client import Comfy
from tests.support.lab import Lab
from tests.support.pictures import png
from tests.support.security_world import Seen, ask
from tests.support.uploads import load, result

MINE = (21, 31, 41)
PNG = png(MINE)
GBK, UTF8 = "图片.png".encode("gbk"), "图片.png".encode()
FORM = "multipart/form-data; boundary=xx"


def quoted(data: bytes) -> bytes:
    """Bytes as an extended parameter holds them."""
    return "".join(f"%{byte:02X}" for byte in data).encode()


def form(filename: bytes, *headers: bytes, data: bytes = PNG, fields: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
    """A form with a file; `filename` is the parameter whole, `fields` hold each its headers and its value."""
    start = b'--xx\r\nContent-Disposition: form-data; name="'
    said = b"".join(b"%b%b\r\n\r\n%b\r\n" % (start, head, value) for head, value in fields)
    lines = b"\r\n".join((b'%bimage"; %b' % (start, filename), *headers))
    return b"%b%b\r\n\r\n%b\r\n--xx--\r\n" % (said, lines, data)


def named(filename: bytes) -> bytes:
    """The usual parameter."""
    return b'filename="%b"' % filename


SUBFOLDER = b'subfolder"'
OF_CHARSET = b'subfolder"\r\nContent-Type: text/plain; charset=gbk'
IN_BASE64 = b'subfolder"\r\nContent-Transfer-Encoding: base64'
# By what it is: the body, its Content-Encoding, and where that differs from a ComfyUI the name.
TAKEN: dict[str, tuple[bytes, str, str | None]] = {
    "UTF-8": (form(named(UTF8)), "", None),
    "GBK that looks like UTF-8": (form(named(GBK)), "", None),
    "GBK that does not": (form(named("许可.png".encode("gbk"))), "", "许可.png"),
    "Latin-1": (form(named(b"caf\xe9.png")), "", "café.png"),
    "filename* in GBK": (form(b"filename*=gbk''" + quoted(GBK)), "", None),
    "filename* in UTF-8": (form(named(b"b.png") + b"; filename*=UTF-8''" + quoted(UTF8)), "", None),
    "filename* in no charset": (form(b"filename*=klingon''a.png"), "", None),
    "percent signs": (form(named(b"%E5%9B%BE.png")), "", None),
    "no quotes": (form(b"filename=plain.png"), "", None),
    "a charset of the file's type": (form(named(GBK), b"Content-Type: image/png; charset=gbk"), "", None),
    "a folder in GBK": (form(named(b"g.png"), fields=((OF_CHARSET, GBK[:-4]),)), "", None),
    "a folder in base64": (form(named(b"f.png"), fields=((IN_BASE64, base64.b64encode(b"sub")),)), "", None),
    "a hundred fields": (form(named(b"m.png"), fields=tuple((b'f%d"' % n, b"x") for n in range(100))), "", None),
    "base64": (form(named(b"b64.png"), b"Content-Transfer-Encoding: base64", data=base64.encodebytes(PNG)), "", None),
    "a preamble": (b"x" * 1000 + b"\r\n\r\n" + form(named(b"p.png")), "", None),
    "gzip": (gzip.compress(form(named(b"gz.png"))), "gzip", None),
    "zlib": (zlib.compress(form(named(b"z.png"))), "deflate", None),
    "deflate": (zlib.compress(form(named(b"d.png")))[2:-4], "deflate", None),
}
RUN = {"GBK that looks like UTF-8", "GBK that does not", "Latin-1", "filename* in GBK", "a folder in GBK", "gzip"}
REFUSED: dict[str, tuple[bytes, str]] = {
    "half a gzip": (gzip.compress(form(named(b"a.png")))[:-20], "gzip"),
    "no gzip": (form(named(b"a.png")), "gzip"),
    "an unknown encoding of a part": (form(named(b"a.png"), b"Content-Transfer-Encoding: x-foo"), ""),
    "a long preamble": (b"\r\n" * 3_000 + form(named(b"a.png")), ""),
    "a long preamble in gzip": (gzip.compress(b"\r\n" * 3_000 + form(named(b"a.png"))), "gzip"),
    "many parameters": (form(named(b"a.png") + b";" * 51), ""),
    # 64 KB in it take the loop 90 ms.
    "a folder in punycode": (
        form(named(b"a.png"), fields=((b'subfolder"\r\nContent-Type: text/plain; charset=Punycode', b"x"),)),
        "",
    ),
    "no filename": (form(named(b"")), ""),
    "a folder in no charset": (
        form(named(b"a.png"), fields=((b'subfolder"\r\nContent-Type: text/plain; charset=klingon', b"x"),)),
        "",
    ),
}


async def sent(comfy: Comfy, body: bytes, coding: str) -> Seen:
    """An upload."""
    more = {"Content_Encoding": coding} if coding else {}
    return await ask(comfy, "POST", "/upload/image", body, Content_Type=FORM, **more)


async def test_a_form_is_read_as_comfyui_reads_it(lab: Lab) -> None:
    simulator, backend = await lab.simulators(2)
    gateway = await lab.gateway(backend)
    comfy, direct = Comfy(lab.http, gateway.url), Comfy(lab.http, simulator.url)
    names: list[str] = []
    for what, (body, coding, other_name) in TAKEN.items():
        found, expected = await sent(comfy, body, coding), await sent(direct, body, coding)
        assert (found.status, expected.status) == (200, 200), (what, found, expected)
        told: dict[str, Any] = json.loads(found.body)
        assert told == json.loads(expected.body) | ({"name": other_name} if other_name else {}), what
        query = urlencode({"filename": told["name"], "subfolder": told["subfolder"], "type": "input"})
        assert (await ask(comfy, "GET", f"/view?{query}")).body == PNG, what
        names += [f"{told['subfolder']}/{told['name']}".lstrip("/")] if what in RUN else []
    found_colours = await asyncio.gather(*(result(comfy, load(name, f"n{n}")) for n, name in enumerate(names)))
    assert (len(names), set(found_colours)) == (len(RUN), {MINE})


async def test_a_form_that_is_refused_says_why(lab: Lab) -> None:
    """Where a ComfyUI answers a bare 500. A small body that unpacks to much is read no further than is taken."""
    gateway = await lab.gateway(await lab.simulator(), uploads__max_size=2**20)
    comfy = Comfy(lab.http, gateway.url)
    bomb = gzip.compress(form(named(b"a.png"), data=bytes(8 * 2**20)))
    other = gzip.compress(form(named(b"a.png"), fields=((b'other"; filename="b"', bytes(8 * 2**20)),)))
    for what, (body, coding) in REFUSED.items():
        seen = await sent(comfy, body, coding)
        assert seen.status == 400, (what, seen)
        assert json.loads(seen.body)["error"]["details"], what
    for body in (bomb, other):
        seen = await sent(comfy, body, "gzip")
        assert (seen.status, json.loads(seen.body)["error"]["type"]) == (413, "upload_too_large"), seen

    async def endless() -> AsyncIterator[bytes]:
        yield form(named(b"a.png")).removesuffix(b"--\r\n") + b'\r\nContent-Disposition: form-data; name="x"\r\n\r\n'
        for _ in range(10_000):
            yield bytes(2**16)

    # In chunks, without a length, and in a part that nobody keeps.
    async with lab.http.post(f"{gateway.url}/upload/image", data=endless(), headers={"Content-Type": FORM}) as answer:
        assert (answer.status, (await answer.json())["error"]["type"]) == (413, "upload_too_large")
