"""Backends that ask who is there, or speak TLS; and what no caller learns of them."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
import yaml

from gateway.comfy import client as comfy_client
from gateway.comfy.client import BadAnswer, ComfyClient, Unanswered
from gateway.settings import SettingsError, load
from tests.security.recorder import Recorder
from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab, Simulator, until
from tests.support.raw_servers import start_raw_server
from tests.support.workflows import slow

PASSWORD, TOKEN, USER, BOSS = "secret-of-a-backend", "token-of-a-backend", "key-of-a-user-1234", "key-of-the-boss-12"
BASIC = "Basic " + base64.b64encode(f"gateway:{PASSWORD}".encode()).decode()


async def simulator(lab: Lab, *options: str, asks: str = "") -> Simulator:
    """A backend that asks for a header; the lab's own look-ups of it can't be used."""
    return await lab.simulator(*options, *(("--authorization", asks) if asks else ()))


async def gateway_of(lab: Lab, backends: list[dict[str, Any]]) -> tuple[GatewayProcess, Path]:
    """A gateway with these backends, whose secrets are in the environment; and its configuration."""
    config = lab.directory / "gateway.yaml"
    keys = [{"name": "user", "key": USER}, {"name": "boss", "key": BOSS, "role": "admin"}]
    config.write_text(yaml.safe_dump({"backends": backends, "auth": {"keys": keys}}))
    gateway = GatewayProcess(lab.directory / "data", [], ("--config", str(config)), {"probe__interval": 0.25})
    gateway.environment |= {"PASSWORD": PASSWORD, "TOKEN": TOKEN}
    lab.servers.append(gateway)
    await gateway.start()
    return gateway, config


async def check(config: Path) -> tuple[int, str]:
    """``comfyui-gateway check``: its exit code, and all that it says."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "check", "--config", str(config),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env={"PATH": "/usr/bin", "PASSWORD": PASSWORD, "TOKEN": TOKEN, "COMFYUI_GATEWAY_PORT": "0"},
        cwd=Path(__file__).parent.parent.parent,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def whole_round(lab: Lab, gateway: GatewayProcess, backends: int) -> None:
    """A prompt on every backend, with a file that is put there first; its events, its image."""
    await lab.backends_up(gateway, backends)
    user = Comfy(lab.http, gateway.url, X_API_Key=USER)
    listener = await user.listen("c")
    ids = [await user.prompt(slow(n), "c") for n in range(backends)]
    for prompt_id in ids:
        entry = await user.entry(prompt_id)
        await listener.end_of(prompt_id)
        (image,) = user.images(entry)
        assert (await user.view(image)).startswith(b"\x89PNG")
    form = aiohttp.FormData()
    form.add_field("image", b"bytes", filename="a.txt")
    async with lab.http.post(f"{gateway.url}/upload/image", data=form, headers=user.headers) as answer:
        assert answer.status == 200

    async def placed() -> bool:
        async with lab.http.get(f"{gateway.url}/metrics") as answer:
            return (await answer.text()).count('outcome="ok"} 1.0') >= backends

    await until(placed, what="the file is on every backend")
    async with lab.http.get(f"{gateway.url}/extensions", headers=user.headers) as answer:
        assert answer.status == 200


async def test_backends_that_ask_who_is_there(lab: Lab) -> None:
    """Everything that is asked of them carries it, and nobody else ever sees it."""
    backends = [
        {"url": (await simulator(lab, asks=BASIC)).url, "auth": {"user": "gateway", "password": "${PASSWORD}"}},
        {"url": (await simulator(lab, asks=f"Bearer {TOKEN}")).url, "auth": {"bearer": "${TOKEN}"}},
    ]
    gateway, config = await gateway_of(lab, backends)
    await whole_round(lab, gateway, 2)
    boss = {"X-API-Key": BOSS}
    async with lab.http.get(f"{gateway.url}/gateway/backends", headers=boss) as answer:
        described = await answer.text()
    async with lab.http.get(f"{gateway.url}/metrics") as answer:
        metrics = await answer.text()
    code, said = await check(config)
    assert code == 0, said
    for told in (described, metrics, said, gateway.log.read_text(), *_journal(lab)):
        for secret in (PASSWORD, TOKEN, BASIC.split()[1]):
            assert secret not in told
    settings = load(config, environment={"PASSWORD": PASSWORD, "TOKEN": TOKEN})
    assert PASSWORD not in repr(settings)
    assert TOKEN not in repr(settings)


def _journal(lab: Lab) -> list[str]:
    files = [file for file in (lab.directory / "data").rglob("*") if file.is_file()]
    return [file.read_bytes().decode("latin-1") for file in files]


async def test_backends_that_refuse_what_they_are_told(lab: Lab) -> None:
    """They take no work, ``check`` says why, and a user is asked for no password of theirs."""
    one = await simulator(lab, asks=BASIC)
    gateway, config = await gateway_of(lab, [{"url": one.url, "auth": {"user": "gateway", "password": "wrong"}}])
    code, said = await check(config)
    assert (code, "401" in said) == (1, True)
    await lab.backends_up(gateway, 0)
    async with lab.http.get(f"{gateway.url}/extensions", headers={"X-API-Key": USER}) as answer:
        assert "WWW-Authenticate" not in answer.headers
        assert str(one.port) not in f"{await answer.text()}{answer.headers}"


async def test_backends_with_tls(lab: Lab) -> None:
    """One with an authority of its own, one that nobody vouches for, one that wants to know who we are."""
    authority, stranger, ours = trustme.CA(), trustme.CA(), trustme.CA()
    files = {
        "ca": authority.cert_pem.bytes(),
        "ours": ours.cert_pem.bytes(),
        **_pair("backend", authority.issue_cert("127.0.0.1")),
        **_pair("stranger", stranger.issue_cert("127.0.0.1")),
        **_pair("gateway", ours.issue_cert("gateway")),
    }
    path = {name: lab.directory / f"{name}.pem" for name in files}
    for name, content in files.items():
        path[name].write_bytes(content)
    backend = ("--tls", str(path["backend"]), str(path["backend-key"]))
    first = await simulator(lab, *backend)
    second = await simulator(lab, "--tls", str(path["stranger"]), str(path["stranger-key"]))
    third = await simulator(lab, *backend, "--client-ca", str(path["ours"]), asks=f"Bearer {TOKEN}")
    ca = str(path["ca"])
    pair = {"certificate": str(path["gateway"]), "key": str(path["gateway-key"])}
    gateway, config = await gateway_of(
        lab,
        [
            {"url": first.url, "tls": {"ca": ca}},
            {"url": second.url, "tls": {"verify": False}},
            {"url": third.url, "tls": {"ca": ca, **pair}, "auth": {"bearer": "${TOKEN}"}},
        ],
    )
    await whole_round(lab, gateway, 3)
    assert (await check(config))[0] == 0
    for url, tls in ((first.url, None), (second.url, {"ca": ca}), (third.url, {"ca": ca})):
        config.write_text(yaml.safe_dump({"backends": [{"url": url, **({"tls": tls} if tls else {})}]}))
        code, said = await check(config)
        assert (code, "no: " in said) == (1, True), said
        if url != third.url:
            assert "its certificate is not trusted" in said


def _pair(name: str, issued: trustme.LeafCert) -> dict[str, bytes]:
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    return {name: chain, f"{name}-key": issued.private_key_pem.bytes()}


async def test_no_error_tells_a_user_where_a_backend_is(lab: Lab) -> None:
    """Of a backend that is gone, is another program, or shows users what only operators should see."""
    recorder = Recorder()
    await recorder.start()
    port = recorder.url.rsplit(":", 1)[1]
    stats = {"system": {"argv": ["main.py", "--listen", "10.1.2.3", "--port", port], "os": "posix"}, "devices": []}
    body = json.dumps(stats).encode()
    recorder.answers["/system_stats"] = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    gateway, _ = await gateway_of(lab, [{"url": recorder.url}])
    user, boss = {"X-API-Key": USER}, {"X-API-Key": BOSS}

    async def known() -> bool:
        async with lab.http.get(f"{gateway.url}/system_stats", headers=user) as answer:
            return answer.status == 200

    await until(known)
    for headers, argv in ((user, ["main.py"]), (boss, stats["system"]["argv"])):
        async with lab.http.get(f"{gateway.url}/system_stats", headers=headers) as answer:
            assert (await answer.json())["system"]["argv"] == argv
    async with lab.http.get(f"{gateway.url}/gateway/backends", headers=user) as answer:
        assert answer.status == 403
    async with lab.http.get(f"{gateway.url}/gateway/backends", headers=boss) as answer:
        assert (await answer.json())["backends"][0]["url"] == recorder.url
    await recorder.close()
    asked: list[tuple[str, str, Any]] = [
        ("GET", "/", None),
        ("GET", "/nothing", None),
        ("POST", "/prompt", {"prompt": slow()}),
        ("POST", "/prompt", {"prompt": {}}),
        ("GET", "/object_info", None),
        ("GET", "/models", None),
        ("GET", "/view?filename=a.png", None),
        ("POST", "/queue", {"clear": True}),
        ("GET", "/view_metadata/x?filename=a.safetensors", None),
    ]
    for method, path, sent in asked:
        async with lab.http.request(method, gateway.url + path, json=sent, headers=user) as answer:
            told = f"{await answer.text()}{answer.headers}"
        assert port not in told, (path, told)
        assert "127.0.0.1" not in told, (path, told)
    assert await gateway.stop() == 0


async def test_no_redirect_is_followed(lab: Lab) -> None:
    """Neither of a request nor of the socket's handshake, with what a backend was told."""
    elsewhere, recorder = Recorder(), Recorder()
    await elsewhere.start()
    await recorder.start()
    away = b"HTTP/1.1 307 Away\r\nLocation: %b/stolen\r\nContent-Length: 0\r\n\r\n" % elsewhere.url.encode()
    gateway, _ = await gateway_of(lab, [{"url": recorder.url, "auth": {"bearer": "${TOKEN}"}}])
    await passes_on_as(lab, gateway)
    client_id = next(seen.path for seen in recorder.seen if seen.path.startswith("/ws"))
    recorder.answers |= dict.fromkeys([client_id, "/away", "/queue", "/system_stats", "/prompt"], away)
    async with lab.http.get(f"{gateway.url}/away", headers={"X-API-Key": USER}, allow_redirects=False) as answer:
        assert (answer.status, answer.headers.get("Location")) == (307, None)
    seen = len(recorder.seen)

    async def asked_again() -> bool:
        new = [found.path for found in recorder.seen[seen:]]
        return client_id in new and "/queue" in new

    await until(asked_again, what="it is probed and its socket is tried again")
    assert elsewhere.seen == []
    assert await gateway.stop() == 0
    await recorder.close()
    await elsewhere.close()


async def passes_on_as(lab: Lab, gateway: GatewayProcess) -> None:
    """Wait until a gateway with keys hands on what it does not answer itself."""

    async def look() -> bool:
        async with lab.http.get(f"{gateway.url}/extensions/none", headers={"X-API-Key": USER}) as answer:
            return answer.status == 200

    await until(look)


async def test_an_answer_without_end_is_not_read_to_its_end(http: aiohttp.ClientSession) -> None:
    """Whether its length is told or not, and however small it is on the line."""

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readuntil(b"\r\n")
        if b"/told" in line:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n")
            if line.startswith(b"HEAD"):
                writer.close()
                return
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                writer.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await start_raw_server(endless, "127.0.0.1", 0)
    client = ComfyClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", http)
    for path in ("/told", "/untold"):
        with pytest.raises(BadAnswer, match="more than 1000000 bytes"):
            await client.call("GET", path, timeout=30, maximum=1_000_000)
    # Of a large file it is asked whether it is there.
    assert (await client.call("HEAD", "/told")).body == b""
    await server.close()


async def test_what_is_no_tls_is_said_without_an_address(http: aiohttp.ClientSession) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(64)
        writer.write(b"plain\r\n\r\n")
        writer.close()

    server = await start_raw_server(plain, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for scheme in ("http", "https"):
        with pytest.raises(comfy_client.BackendError) as caught:
            await ComfyClient(f"{scheme}://127.0.0.1:{port}", http).call("GET", "/queue")
        assert str(port) not in str(caught.value)
        assert isinstance(caught.value, Unanswered if scheme == "http" else comfy_client.Unreachable)
    await server.close()


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        ({"url": "http://a", "auth": {"user": "u", "bearer": "b"}}, "backends[0].auth: give either user and password"),
        ({"url": "http://a", "auth": {}}, "backends[0].auth: give either user and password"),
        ({"url": "http://a", "auth": {"password": "hunter2"}}, "backends[0].auth: give either user and password"),
        ({"url": "http://a", "auth": {"bearer": "hunter2\n"}}, "backends[0].auth: the bearer token holds"),
        ({"url": "http://a", "auth": {"user": "a:b", "password": "hunter2"}}, "backends[0].auth: the user must not"),
        ({"url": "http://a", "tls": {}}, "backends[0]: tls goes with a url that begins with https:"),
        ({"url": "https://a", "tls": {"ca": "/none.pem"}}, "backends[0].tls.ca: /none.pem can't be read"),
        ({"url": "https://a", "tls": {"ca": __file__}}, f"backends[0].tls: ca: {__file__} holds no certificate"),
        ({"url": "https://a", "tls": {"certificate": __file__}}, "backends[0].tls: give both certificate and key"),
    ],
)
def test_what_is_wrong_is_said_by_its_place(backend: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(None, environment={}, flags={"backends": [backend]})
    assert caught.value.problems[0].startswith(said), caught.value.problems
    assert "hunter2" not in str(caught.value)


def test_tls_to_backends_is_not_old() -> None:
    entry = load(None, environment={}, flags={"backends": [{"url": "https://a", "tls": {}}]}).backends[0]
    assert entry.tls is not None
    context = entry.tls.context()
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
