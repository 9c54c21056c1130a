"""Files that name other files, by their content; and ordinary ones, which must pass."""

from __future__ import annotations

import io
import json
import struct
import wave
import zlib
from gzip import compress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from gateway.comfy.media_references import HEAD_BYTES, content_start, reference_in

HLS = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n../anna/film.mp4\n#EXT-X-ENDLIST\n"
CONCAT = b"ffconcat version 1.0\nfile film.mp4\n"
DASH = (
    b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" '
    b'profiles="urn:mpeg:dash:profile:isoff-live:2011"><Period/></MPD>'
)
SDP = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n"
IMF = b'<?xml version="1.0"?><CompositionPlaylist><ContentTitle>x</ContentTitle></CompositionPlaylist>'
IDX = b"# VobSub index file, v7 (do not modify this line!)\nid: en, index: 0\n"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/hosts) (r) file\n"
NAMING = {
    "HLS": HLS,
    "ffconcat": CONCAT,
    "DASH": DASH,
    "DASH of 3GPP": b'<MPD profiles="urn:3GPP:PSS:profile:DASH10">',
    "IMF": IMF,
    "ASSETMAP": b'<?xml version="1.0"?><AssetMap xmlns="http://www.smpte-ra.org/schemas/429-9/2007/AM"/>',
    "SDP": SDP,
    "SDP with CRLF": SDP.replace(b"\n", b"\r\n"),
    "VobSub": IDX,
    "redirector": b"[Reference]\r\nRef1=http://127.0.0.1/x\r\n",
    "ASX": b'<asx version="3.0"><entry><ref href="file:///x"/></entry></asx>',
    "EPS": EPS,
}


def tag(size: int, footer: bool = False) -> bytes:
    """An ID3v2 tag with so many bytes in it."""
    length = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x04\x00" + (b"\x10" if footer else b"\x00") + length + bytes(size) + (b"3DI" + bytes(7)) * footer


def box(name: bytes, content: bytes) -> bytes:
    """A box of an MP4."""
    return struct.pack(">I", 8 + len(content)) + name + content


def png() -> bytes:
    """A picture with a workflow in its texts, which names playlists."""
    buffer, info = io.BytesIO(), PngImagePlugin.PngInfo()
    text = json.dumps({"1": {"class_type": "X", "inputs": {"a": f"{HLS!r} {DASH!r} {SDP!r} <AssetMap %!PS"}}})
    info.add_text("prompt", text)
    info.add_text("parameters", SDP.decode() + DASH.decode())
    Image.new("RGB", (8, 8), (1, 2, 3)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def picture(kind: str) -> bytes:
    """A picture of another kind."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(buffer, kind, comment=HLS)
    return buffer.getvalue()


def wav() -> bytes:
    """A second of silence."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))
    return buffer.getvalue()


_DREF = box(b"dref", bytes(4) + struct.pack(">I", 1) + box(b"url ", bytes(4) + b"file:///x\0"))
ORDINARY = {
    "nothing": b"",
    "png": png(),
    "jpeg": picture("JPEG"),
    "webp": picture("WEBP"),
    "gif": picture("GIF"),
    "mp3": b"\xff\xfb\x90\x00" + bytes(400),
    "mp3 with ID3": tag(300) + b"\xff\xfb\x90\x00" + bytes(400),
    "mp3 with two": tag(300) + tag(20, footer=True) + b"\xff\xfb\x90\x00" + bytes(400),
    "wav": wav(),
    "flac": b"fLaC\x00\x00\x00\x22" + bytes(34),
    "ogg": b"OggS\x00\x02" + bytes(22) + b"\x01\x1e\x01vorbis",
    "webm": b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01\x42\xf7\x81\x01\x42\xf2\x81\x04\x42\x82\x84webm",
    "mp4": box(b"ftyp", b"isom\0\0\2\0isomiso2") + box(b"moov", box(b"udta", json.dumps({"p": SDP.decode()}).encode())),
    "mp4 with a dref": box(b"ftyp", b"qt  \0\0\2\0") + box(b"moov", _DREF),
    "latent": struct.pack("<Q", 20) + b'{"x":{"dtype":"F32"}}',
    "glb": b"glTF\x02\x00\x00\x00" + bytes(8),
    "text": b"a prompt: c=IN IP is no line, #EXTM3U, ffconcat version 1.0, <MPD without profile",
    "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><rect/></svg>',
    "json": json.dumps({"a": HLS.decode(), "b": [SDP.decode()]}).encode(),
    "compressed": compress(HLS),
    "zlib": zlib.compress(CONCAT),
    "not an ID3": b"ID3\xff\xff\x00\xff\xff\xff\xff" + bytes(50),
    "short ID3": b"ID3\x04",
}


@pytest.mark.parametrize("what", NAMING)
def test_what_names_others(what: str) -> None:
    data = NAMING[what]
    variants = {
        "as it is": data,
        "BOM": b"\xef\xbb\xbf" + data,
        "blanks": b" \r\n\t\n" + data,
        "many blanks": b"\n" * 5_000 + data,
        "BOM and blanks": b"\xef\xbb\xbf \n" + data,
        "lower case": data.lower(),
        "upper case": data.upper(),
        "ID3": tag(100) + data,
        "ID3 with footer": tag(100, footer=True) + data,
        "two ID3": tag(100) + tag(3_000) + data,
        "much behind it": data + bytes(HEAD_BYTES),
    }
    for variant, each in variants.items():
        assert reference_in(each[:HEAD_BYTES]), variant


def test_what_is_searched_for_may_stand_late() -> None:
    for data in (DASH, IMF, SDP):
        assert reference_in(b"<!--" + b" x\n" * 200_000 + b"-->\n" + data)


@pytest.mark.parametrize("what", ORDINARY)
def test_what_names_none(what: str) -> None:
    assert reference_in(ORDINARY[what]) is None


def test_a_tag_that_reaches_past_the_head_hides_what_follows() -> None:
    data = tag(2 * HEAD_BYTES) + HLS
    assert "ID3" in (reference_in(data[:HEAD_BYTES]) or "")
    start = content_start(data[:HEAD_BYTES])
    assert start == len(data) - len(HLS)
    assert reference_in(data[start:])
    assert reference_in(tag(10))
    assert reference_in(tag(10) * 20 + b"\xff\xfb")
    assert content_start(tag(10) * 20) is None


def test_a_damaged_tag_hides_nothing() -> None:
    """FFmpeg probes the bytes of a tag that it can't skip."""
    assert reference_in(b"%!PS" + tag(10))
    assert reference_in(b"ID3\x04\x00\x00\xff\x00\x00\x00" + HLS) is None


@given(st.binary(max_size=200), st.sampled_from([b"", *NAMING.values(), *ORDINARY.values(), tag(50)]))
def test_any_bytes(data: bytes, other: bytes) -> None:
    for each in (data, other + data, data + other, b"ID3\x04\x00" + data):
        found = reference_in(each)
        assert found is None or found
        start = content_start(each)
        assert start is None or start >= 0
