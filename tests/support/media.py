"""Media files that name other files."""

from __future__ import annotations

import io
import json
import struct
import wave
import zlib
from gzip import compress

from PIL import Image, PngImagePlugin

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
