"""Tell from the first bytes of a file if opening it opens other files. Pure.

LoadVideo and LoadAudio hand a file to PyAV, and FFmpeg goes by what is in it: a text that is a playlist is played,
whatever its name ends with, and the files that it names may be anybody's. LoadImage hands a file to Pillow, which
hands PostScript to Ghostscript, a programming language.

Each rule follows a probe function of FFmpeg's libavformat or of Pillow, and is a little wider: blanks and a byte order
mark before a signature count as none, and so does the case of letters.

Not refused, because nothing that they name is opened:

- MOV and MP4 with ``dref`` entries that are not self-contained: FFmpeg follows them if the option enable_drefs is set
  (mov.c), and PyAV does not set it.
- Magic Lantern video (mlvdec.c): FFmpeg opens the parts beside it, by the name of the file itself, not by its content.
- Smooth Streaming: FFmpeg writes such manifests (smoothstreamingenc.c) and reads none.
- SVG: FFmpeg needs librsvg for it, which PyAV's builds lack, and no stock node draws one.
- glTF and OBJ: no stock node reads what they name. A browser does, from the gateway, as its own user.
- A compressed text: neither FFmpeg nor Pillow unpacks a file before probing it.
"""

from __future__ import annotations

import re

# FFmpeg probes no more of a file (libavformat/internal.h, PROBE_BUF_MAX).
HEAD_BYTES = 1 << 20
_BLANKS = b" \t\r\n\x0b\x0c"
_BOM = b"\xef\xbb\xbf"
_ID3_HEADER = 10
# FFmpeg skips tag after tag (libavformat/id3v2.c). Nobody writes more than a few.
_MAX_TAGS = 16

# Signatures at the beginning of a file, in lower case.
_SIGNATURES = (
    # hls.c, hls_probe. The tags that it looks for besides may stand behind the part that it probes.
    (b"#extm3u", "an HLS playlist"),
    # concatdec.c, concat_probe.
    (b"ffconcat version", "an FFmpeg concat script"),
    # mpeg.c, vobsub_probe.
    (b"# vobsub index file", "a VobSub index"),
    # Redirectors of RTSP servers and of Windows Media. FFmpeg reads neither; other players do.
    (b"[reference]", "a redirector"),
    (b"<asx", "an ASX redirector"),
    # Pillow, EpsImagePlugin.py, which runs Ghostscript.
    (b"%!ps", "PostScript"),
)
# The same of an EPS with a preview, whose header is binary.
_DOS_EPS = b"\xc5\xd0\xd3\xc6"
# rtsp.c, sdp_probe: a line that begins so.
_SDP_LINE = re.compile(rb"(?:^|\n)\r?[ \t]*c=in ip", re.IGNORECASE)


def reference_by_name(filename: str) -> str | None:
    """Return the kind of file, in words, if a file of this name opens another file beside it; else None.

    FFmpeg takes any file whose name ends with .idx for a VobSub index and opens the .sub beside it (mpeg.c).
    """
    return "a VobSub index" if filename.rstrip(" .").lower().endswith(".idx") else None


def tag_end(data: bytes, offset: int = 0) -> int:
    """Return where the ID3v2 tag that begins at `offset` ends; `offset` if none begins there.

    FFmpeg skips such a tag before it probes (libavformat/format.c, av_probe_input_format3). It may hold 256 MiB.
    """
    header = data[offset : offset + _ID3_HEADER]
    is_tag = (
        len(header) == _ID3_HEADER
        and header[:3] == b"ID3"
        and 0xFF not in header[3:5]
        and all(byte < 0x80 for byte in header[6:])
    )
    if not is_tag:
        return offset
    size = header[6] << 21 | header[7] << 14 | header[8] << 7 | header[9]
    footer = _ID3_HEADER if header[5] & 0x10 else 0
    return offset + _ID3_HEADER + size + footer


def content_start(data: bytes) -> int | None:
    """Return where the content behind all ID3v2 tags begins; None if there are too many tags to tell.

    A position at or behind the end of `data` says where to read on.
    """
    offset = 0
    for _ in range(_MAX_TAGS):
        end = tag_end(data, offset)
        if end == offset:
            return offset
        offset = end
    return None


def reference_in(head: bytes) -> str | None:
    """Return the kind of a file that names other files, in words; None for a file that names none.

    `head` is its beginning, at least `HEAD_BYTES` unless the file is shorter. If an ID3v2 tag reaches past the head,
    the kind can't be judged: read the file again from `content_start`.
    """
    start = content_start(head)
    if start is None or (start >= len(head) and start > 0):
        return "a file whose ID3 tag hides what it is"
    # If the tag is damaged, FFmpeg may probe the tag itself.
    return _reference_at(head[start:]) or (_reference_at(head) if start else None)


def _reference_at(content: bytes) -> str | None:
    if content.startswith(_DOS_EPS):
        return "PostScript"
    beginning = content[:256].removeprefix(_BOM).lstrip(_BLANKS).removeprefix(_BOM).lower()
    if not beginning and content:
        beginning = content.removeprefix(_BOM).lstrip(_BLANKS).removeprefix(_BOM)[:256].lower()
    for signature, name in _SIGNATURES:
        if beginning.startswith(signature):
            return name
    # FFmpeg searches what follows in a C string: it ends at the first NUL, which no picture and no film is without.
    return _reference_in_text(content.partition(b"\0")[0]) or _description_in(content)


def _reference_in_text(text: bytes) -> str | None:
    if b"<" in text:
        lower = text.lower()
        # dashdec.c, dash_probe.
        if b"<mpd" in lower and (b"dash:profile" in lower or b"3gpp:pss:profile:dash" in lower):
            return "a DASH manifest"
        # imfdec.c, imf_probe; it then reads the ASSETMAP beside it.
        if b"<compositionplaylist" in lower or b"<assetmap" in lower:
            return "an IMF composition"
        if b"<asx" in lower[:4096]:
            return "an ASX redirector"
    return None


def _description_in(content: bytes) -> str | None:
    """Return the name of a session description: it names addresses that FFmpeg would listen at.

    sdp_probe goes from line to line and ends at one that begins with NUL.
    """
    found = _SDP_LINE.search(content) if b"c=in ip" in content.lower() else None
    if found is None or content.startswith(b"\0"):
        return None
    ended = re.search(rb"\n\r?\0", content[: found.start() + 1])
    return None if ended else "a session description (SDP)"
