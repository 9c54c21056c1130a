"""Ways out of where files are, in all spellings, for whatever takes a name: none leads anywhere.

There are files of another tenant's on the backend, and files of the machine's beside its folders; who asks for them
gets neither, whether isolated or an admin.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import aiohttp
import pytest

from gateway.comfy.file_refs import FileRef
from gateway.web.routes.view import requested_file
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, Simulator
from tests.support.pictures import png
from tests.support.raw_servers import start_raw_server
from tests.support.security_world import KEYS, Seen, ask, caller, files_below, raw, start
from tests.support.uploads import load, upload
from tests.support.workflows import slow

SECRET = b"the-machines-own-secret"
ANNAS = (1, 2, 3)


async def backend(lab: Lab, tmp_path: Path) -> tuple[Simulator, Path]:
    """A backend whose folders are among other files; one of its folders holds a link to them."""
    outside = tmp_path / "machine"
    base = outside / "comfy"
    (base / "input").mkdir(parents=True)
    for path in (outside / "secret.txt", outside / "secret.png", base / "secret.png"):
        path.write_bytes(SECRET)
    return await lab.simulator("--base-dir", str(base), "--record"), outside


def spelled(path: str) -> list[str]:
    """A path as it stands in a request, in every way that some reader of it might undo."""
    once = quote(path, safe="")
    ways = [
        path,
        once,
        quote(once, safe=""),
        once.replace("%2F", "/"),
        path.replace("/", "%5C"),
        path.replace("/", "%255C"),
        path.replace("..", "%2e%2e"),
        path.replace("..", "%252e%252e"),
        path.replace("/", "%c0%af"),
        path.replace("..", "%c0%ae%c0%ae"),
        path.replace("/", "//"),
        path.replace("/", "/./"),
        path.replace("..", "..%00"),
        f"{once}%00.png",
        f"{once}%20",
        f"{once}.",
        path.replace("..", "...."),
        path.replace("..", "．．"),
        path.replace("/", "∕"),
    ]
    return sorted({way if way.isascii() else quote(way, safe="/%.") for way in ways})


OUT = [
    "../secret.txt",
    "../secret.png",
    "../../secret.png",
    "/etc/passwd",
    "C:/Windows/win.ini",
    "//127.0.0.1/x/secret.png",
]
INTO = ["../output/annas_00001_.png", "../input/annas.png", "x/../annas.png", "./annas.png", "annas.png/."]


def is_innocent(seen: Seen) -> bool:
    """Whether an answer holds nothing that it must not."""
    is_picture = any(name == "content-type" and value.startswith("image/") for name, value in seen.headers)
    return (
        SECRET not in seen.body and b"root:" not in seen.body and not (is_picture and seen.body) and seen.status < 500
    )


def leads_elsewhere(path: str) -> bool:
    """Whether a request's path or query, however often it is decoded, has a way up in it."""
    for _ in range(4):
        path = unquote(path)
    return ".." in re.split(r"[/\\?&=]", path)


@pytest.mark.parametrize("name", ["ben", "boss"])
async def test_no_view_leads_out(lab: Lab, tmp_path: Path, name: str) -> None:
    """As filename, as subfolder, as type; given twice, in each order; in the path of what is passed on."""
    simulator, _ = await backend(lab, tmp_path)
    gateway = await start(lab, simulator)
    anna, asker = caller(lab, gateway, "anna"), caller(lab, gateway, name)
    await anna.entry(await anna.prompt(slow(0x010203, prefix="annas")))
    await upload(anna, png(ANNAS), "annas.png")
    targets = OUT + (INTO if name == "ben" else [])
    queries = []
    for way in sorted({way for target in targets for way in spelled(target)}):
        folder, _, filename = way.rpartition("/")
        queries += [
            f"filename={way}",
            f"filename={way}&type=input",
            f"filename={filename or 'x.png'}&subfolder={folder or way}",
            f"filename=x.png&filename={way}&subfolder=&subfolder={way}",
            f"filename={way}&filename=x.png&type=temp&type=output",
            f"filename=x.png&subfolder={way}&type=input",
            f"filename=annas.png&type={way}",
            f"filename={way}%20%5Binput%5D",
        ]
    paths = [f"{route}?{query}" for query in queries for route in ("/view", "/vhs/viewvideo")]
    paths += [
        f"{start_of}{way}"
        for way in spelled("../secret.txt") + spelled("../../internal/logs")
        for start_of in (
            "/extensions/",
            "/",
            "/userdata/",
            "/v2/userdata?path=",
            "/userdata?dir=",
            "/models/",
            "/object_info/",
            "/docs/",
            "/experiment/models/",
            "/experiment/models/preview/checkpoints/0/",
            "/view_metadata/",
            "/api/view_metadata/x?filename=",
        )
    ]
    assert len(paths) > 900
    for start_at in range(0, len(paths), 25):
        some = paths[start_at : start_at + 25]
        answers = await asyncio.gather(*(ask(asker, "GET", path) for path in some))
        for path, seen in zip(some, answers, strict=True):
            assert is_innocent(seen), (path, seen)
    if name == "ben":
        # Nor is a backend asked, or a proxy before it, which may undo what is in a path: older ones are less wary.
        for sent in await simulator.recorded(lab.http):
            assert not leads_elsewhere(str(sent["path"])), sent["path"]
    # What was looked for is there.
    assert (await ask(anna, "GET", "/view?filename=annas_00001_.png")).status == 200
    assert (await ask(anna, "GET", "/view?filename=annas.png&type=input")).status == 200


@pytest.mark.parametrize("name", ["ben", "boss"])
async def test_no_upload_leads_out(lab: Lab, tmp_path: Path, name: str) -> None:
    """Nothing is written but in the gateway's own store and, under a harmless name, in a backend's folders."""
    simulator, outside = await backend(lab, tmp_path)
    gateway = await start(lab, simulator)
    asker = caller(lab, gateway, name)
    picture = png((7, 8, 9))
    before = {path for path, _ in files_below(outside)}
    for target in [
        *OUT,
        "../x.png",
        "x/../../x.png",
        "..",
        ".",
        "x\\..\\..\\x.png",
        "x\0.png",
        "\n.png",
        "a" * 300 + ".png",
    ]:
        for field in ("filename", "subfolder", "type"):
            if field == "subfolder" and target.startswith("C:"):
                # A folder of that name is a file's already, and on Linux a name as any other.
                continue
            fields = {"subfolder": target} if field == "subfolder" else {"type": target} if field == "type" else {}
            status, _ = await _sent(asker, picture, target if field == "filename" else "x.png", fields)
            assert status in (200, 400, 413), (target, field, status)
    for way, route in itertools.product(
        ("%2e%2e%2fy.json", "%252e%252e%252fy.json", "..%5cy.json"), ("", "/move/z.json")
    ):
        seen = await ask(asker, "POST", f"/userdata/{way}{route}", {"a": 1})
        assert seen.status in (400, 403, 404), (way, seen)
    await asker.entry(await asker.prompt(load("x.png")))
    after = {path for path, _ in files_below(outside)} - before
    allowed = {outside / "comfy" / kind for kind in ("input", "output", "temp", "user")}
    assert {path for path in after if not allowed & set(path.parents)} == set()
    for path in (outside / "secret.txt", outside / "secret.png", outside / "comfy" / "secret.png"):
        assert path.read_bytes() == SECRET
    known = {lab.directory / "data" / folder for folder in ("uploads", "userdata", "catalogue")}
    written = [path for path, _ in files_below(lab.directory / "data") if not known & set(path.parents)]
    assert {path.name.partition("-")[0].partition(".")[0] for path in written} <= {"gateway", "lock", "audit"}


async def _sent(asker: Comfy, data: bytes, filename: str, fields: dict[str, str]) -> tuple[int, bytes]:
    """An upload whose name stands in the form as it is, whatever is in it."""
    boundary = b"limit"
    part = b'--%b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
    body = b"".join(part % (boundary, name.encode(), b"", value.encode()) for name, value in fields.items())
    body += part % (boundary, b"image", b'; filename="%b"' % filename.encode().replace(b"\n", b"%0A"), data)
    body += b"--%b--\r\n" % boundary
    headers = {**asker.headers, "Content-Type": "multipart/form-data; boundary=limit"}
    async with asker.http.post(f"{asker.url}/upload/image", data=body, headers=headers) as answer:
        return answer.status, await answer.read()


async def test_no_prompt_and_no_mask_loads_what_is_anothers(lab: Lab, tmp_path: Path) -> None:
    """Every spelling of Anna's files that a loader, or a mask's original, might undo on some file system."""
    simulator, _ = await backend(lab, tmp_path)
    gateway = await start(lab, simulator)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    await anna.entry(await anna.prompt(slow(0x010203, prefix="annas")))
    await upload(anna, png(ANNAS), "annas.png")
    await upload(anna, png(ANNAS), "pic.png", subfolder="Ordner \u00fc")
    await anna.entry(await anna.prompt(load("annas.png")))
    await anna.entry(await anna.prompt(load("Ordner \u00fc/pic.png")))
    names = [
        *(
            "annas.png",
            "annas.png [input]",
            "./annas.png",
            "x/../annas.png",
            ".//annas.png",
            "annas.png.",
            "annas.png ",
        ),
        *(
            "ANNAS.PNG",
            "Annas.png",
            "annas.png\0",
            "annas.png\0.png",
            "..\\input\\annas.png",
            ".\\annas.png",
            "annas.png/",
        ),
        *("../input/annas.png", "../../comfy/input/annas.png", str(tmp_path / "machine/comfy/input/annas.png")),
        *("Ordner \u00fc/pic.png", "Ordner u\u0308/pic.png", "ordner \u00dc/PIC.png", "Ordner \u00fc\\pic.png"),
        *("Ordner \u00fc /pic.png", "Ordner \u00fc./pic.png", "ordner \u00fc//pic.png", "x/../Ordner \u00fc/./pic.png"),
        *(
            "annas_00001_.png [output]",
            "./annas_00001_.png [output]",
            "ANNAS_00001_.png [output]",
            "annas_00001_.png[output]",
        ),
        *("../output/annas_00001_.png", "../output/annas_00001_.png [input]", "x/../annas_00001_.png [output]"),
        *("annas_00001_.png [output] [output]", "../output/annas_00001_.png [temp]", "annas_00001_.png\u00a0[output]"),
        *("loaded_00001_.png [output]", "../../secret.png", "/etc/passwd", "secret.png [temp]", "../temp/x.png"),
        *(
            "\uff0e\uff0e/input/annas.png",
            "annas\uff0epng",
            "%61nnas.png",
            "annas%2epng",
            "annas.png%00",
            "file:annas.png",
        ),
    ]
    pictures: list[Any] = []
    for name in names:
        for value in (name, {"__value__": name}):
            status, answer = await ben.post("/prompt", {"prompt": load(value)})
            if status == 200:
                entry = await ben.entry(answer["prompt_id"])
                assert entry["status"]["status_str"] == "error", name
                pictures += ben.images(entry)
            else:
                assert status == 400, (name, answer)
        for kind in ("input", "output"):
            plain = name.partition(" [")[0]
            folder, _, filename = plain.rpartition("/")
            for said in ({"filename": plain, "type": kind}, {"filename": filename, "subfolder": folder, "type": kind}):
                made = await _mask(ben, said)
                assert not made or made != ANNAS, said
    assert pictures == []


async def _mask(ben: Comfy, original: dict[str, str]) -> Any:
    """The colour of what a mask was put into; None if there is no such picture."""
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("image", png((0, 0, 0)), filename="mask.png", content_type="image/png")
    form.add_field("original_ref", json.dumps(original))
    form.add_field("overwrite", "true")
    async with ben.http.post(f"{ben.url}/upload/mask", data=form, headers=ben.headers) as answer:
        assert answer.status in (200, 400), (original, await answer.text())
    seen = await ask(ben, "GET", "/view?filename=mask.png&type=input")
    return None if seen.status == 404 else tuple(seen.body[:3])


async def test_requests_whose_target_is_no_path(lab: Lab) -> None:
    """What is no path of this server leads to no other server."""
    gateway = await start(lab, await lab.simulator())
    strangers: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        strangers.append(await reader.read(100))
        writer.close()

    server = await start_raw_server(listen, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for target in (
        f"http://127.0.0.1:{port}/internal/logs",
        f"@127.0.0.1:{port}/",
        f"//127.0.0.1:{port}/x",
        f"/\\127.0.0.1:{port}/x",
        f":{port}/x",
        f"127.0.0.1:{port}",
        f"/@127.0.0.1:{port}/",
        f"/x#@127.0.0.1:{port}/",
        "*",
    ):
        for method in ("GET", "CONNECT", "OPTIONS"):
            head = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {KEYS['boss']}\r\n"
            said = await raw(gateway.port, f"{head}Connection: close\r\n\r\n".encode())
            assert not said or said.startswith(b"HTTP/1."), (target, said)
            assert b" 500 " not in said.split(b"\r\n")[0]
    await server.close()
    assert strangers == []


@pytest.mark.parametrize(
    ("filename", "subfolder", "kind", "found"),
    [
        ("a.png", None, "output", FileRef("output", "", "a.png")),
        ("a.png [input]", "", "output", FileRef("input", "", "a.png")),
        ("x/a.png", "y", "temp", FileRef("temp", "y", "a.png")),
        ("a.png", "x/../y", "output", FileRef("output", "y", "a.png")),
        ("a.png", "..", "output", 403),
        ("a.png", "x/../..", "output", 403),
        ("a.png", "..\\..", "output", 403),
        ("a.png", "/etc", "output", 403),
        ("/etc/passwd", None, "output", 400),
        ("../a.png", None, "output", 400),
        ("a..png", None, "output", 400),
        ("", None, "output", 400),
        ("a.png", None, "models", 400),
        ("a.png", None, "", 400),
        ("a\0.png", None, "output", 403),
    ],
)
def test_what_a_query_names(filename: str, subfolder: str | None, kind: str, found: FileRef | int) -> None:
    assert requested_file(filename, subfolder, kind) == found


async def test_another_spelling_of_our_routes_reaches_no_backend(lab: Lab) -> None:
    """A proxy before a ComfyUI may merge slashes and undo dots; what /queue answers there is everybody's."""
    simulator = await lab.simulator("--record")
    gateway = await start(lab, simulator)
    before = len(await simulator.recorded(lab.http))
    routes = [
        "queue",
        "history",
        "history/x",
        "api/jobs",
        "view",
        "prompt",
        "userdata/x",
        "settings",
        "object_info",
        "ws",
    ]
    spellings = []
    for route in routes:
        inside = route.replace("/", "//")
        encoded = f"%{ord(route[0]):x}{route[1:]}"
        spellings += [f"//{route}", f"/{route}/", f"/./{route}", f"/%2e/{route}", f"/api//{route}", f"/{route.upper()}"]
        spellings += [
            f"///{inside}",
            f"/%2F{route}",
            f"/%25{encoded[1:]}",
            f"/\\{route}",
            f"/api/api/{route}/",
        ]
        if not route.endswith("/x"):
            # A name may end in a slash, as long as it is looked for in what is the caller's own.
            spellings.append(f"/{route}%2f")
    for name in ("ben", "boss"):
        comfy = caller(lab, gateway, name)
        for path in spellings:
            seen = await ask(comfy, "GET", path)
            assert seen.status == 404, (path, seen)
    # The gateway itself may ask these at any time; /readyz once, to see whether the backend is a gateway.
    own = ("/queue", "/system_stats", "/object_info", "/features", "/readyz")
    for sent in (await simulator.recorded(lab.http))[before:]:
        assert str(sent["path"]).partition("?")[0] in own, sent


async def test_a_tenant_is_no_other_user_of_a_backend(lab: Lab) -> None:
    """ComfyUI's --multi-user takes the user from a header: a tenant that is kept apart can't choose one."""
    simulator = await lab.simulator("--record")
    gateway = await start(lab, simulator)
    for name, passed in (("ben", False), ("boss", True)):
        await ask(caller(lab, gateway, name), "GET", "/extensions", Comfy_User="anna")
        sent = [each for each in await simulator.recorded(lab.http) if each["path"] == "/extensions"]
        assert len(sent) == 1 + passed
        assert any(header.lower() == "comfy-user" for header, _ in sent[-1]["headers"]) == passed
