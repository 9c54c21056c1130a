"""TLS for clients: a new certificate while it serves, plain HTTP that is sent on, and files that are no good."""

from __future__ import annotations

import asyncio
import signal
import ssl
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import trustme
import yaml
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization

from gateway.cli.main import main
from gateway.settings import SettingsError, load
from tests.security.recorder import talk
from tests.support.commands import command
from tests.support.lab import GatewayProcess, Lab, until
from tests.support.raw_servers import start_raw_server

GET = b"GET /queue HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Files:
    """An authority, and where its newest certificate for loopback is."""

    authority: trustme.CA
    certificate: Path
    key: Path

    def renew(self, name: str) -> None:
        """A new certificate, of which `name` is one, and a new key."""
        issued = self.authority.issue_cert("127.0.0.1", "localhost", common_name=name)
        self.key.write_bytes(issued.private_key_pem.bytes())
        self.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))

    def trusting(self) -> ssl.SSLContext:
        """What a client needs."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    @property
    def settings(self) -> dict[str, str]:
        """For the gateway."""
        return {"server__tls__certificate": str(self.certificate), "server__tls__key": str(self.key)}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A first certificate."""
    files = Files(trustme.CA(), tmp_path / "certificate.pem", tmp_path / "key.pem")
    files.renew("first")
    return files


async def start(lab: Lab, files: Files, **settings: object) -> GatewayProcess:
    """A gateway with TLS. The lab's own client does not know its authority."""
    simulator = await lab.simulator()
    gateway = GatewayProcess(lab.directory / "data", [simulator.url], ("--no-auth",), {**files.settings, **settings})
    lab.servers.append(gateway)
    await gateway.start()
    return gateway


async def name_of(gateway: GatewayProcess, files: Files) -> str:
    """The name in the certificate that a new connection gets."""
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port, ssl=files.trusting())
    subject = dict(part[0] for part in writer.get_extra_info("peercert")["subject"])
    writer.close()
    return str(subject["commonName"])


async def test_it_speaks_tls_alone(lab: Lab, files: Files) -> None:
    """No TLS before 1.2, no plain HTTP on the same port; who does not finish a handshake is cut."""
    gateway = await start(lab, files, server__header_timeout=1, server__tls__hsts=600)
    assert gateway.url.startswith("https://")
    connector = aiohttp.TCPConnector(ssl=files.trusting())
    async with aiohttp.ClientSession(connector=connector) as http:
        async with http.get(f"{gateway.url}/queue") as answer:
            assert answer.status == 200
            assert answer.headers["Strict-Transport-Security"] == "max-age=600"
        async with http.ws_connect(f"{gateway.url}/ws") as socket:
            assert (await socket.receive(5)).type is aiohttp.WSMsgType.TEXT
        async with http.post(f"{gateway.url}/queue", json={}, headers={"Origin": gateway.url}) as answer:
            assert answer.status == 200
        plain = gateway.url.replace("https", "http")
        async with http.post(f"{gateway.url}/queue", json={}, headers={"Origin": plain}) as answer:
            assert answer.status == 403
    assert (await talk(gateway.port, GET, silence=20)).statuses == []
    assert (await talk(gateway.port, b"", silence=20)).closed
    old = files.trusting()
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        await asyncio.open_connection("127.0.0.1", gateway.port, ssl=old)


async def test_a_new_certificate_without_a_restart(lab: Lab, files: Files) -> None:
    """It is in use for new connections; those that stand go on. What can't be used is logged, and the old one stays."""
    gateway = await start(lab, files)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, ssl=files.trusting())

    async def ask() -> bytes:
        writer.write(b"GET /queue HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        return head

    assert b" 200 " in await ask()
    assert await name_of(gateway, files) == "first"
    files.renew("second")

    async def is_second() -> bool:
        return await name_of(gateway, files) == "second"

    await until(is_second, what="the second certificate")
    assert b" 200 " in await ask()
    files.certificate.write_text("nonsense")
    gateway.signal(signal.SIGHUP)

    async def complained() -> bool:
        return any(line.get("event") == "certificate_refused" for line in gateway.log_lines())

    await until(complained, what="it says what is wrong")
    assert await name_of(gateway, files) == "second"
    assert b" 200 " in await ask()
    files.renew("third")
    gateway.signal(signal.SIGHUP)

    async def is_third() -> bool:
        return await name_of(gateway, files) == "third"

    await until(is_third, what="the third certificate")
    assert b" 200 " in await ask()
    writer.close()


async def test_plain_http_is_sent_on(lab: Lab, files: Files) -> None:
    """To the same host and path under https, with the same method, without the key, and nowhere else."""
    with_port = await _free_port()
    gateway = await start(
        lab, files, server__tls__redirect_port=with_port, server__allowed_hosts="127.0.0.1,comfy.example"
    )
    port = gateway.port
    for method, target, host, location in (
        ("GET", "/", "127.0.0.1", f"https://127.0.0.1:{port}/"),
        ("POST", "/prompt?a=1&token=secret&b=2", "comfy.example:80", f"https://comfy.example:{port}/prompt?a=1&b=2"),
        ("GET", "//evil.example/x", "127.0.0.1", f"https://127.0.0.1:{port}//evil.example/x"),
        ("GET", "/healthz", "127.0.0.1", f"https://127.0.0.1:{port}/healthz"),
        ("OPTIONS", "*", "127.0.0.1", f"https://127.0.0.1:{port}/"),
        ("GET", "/", "evil.example", None),
        ("GET", "/", "127.0.0.1@evil.example", None),
        ("GET", "/", "", None),
        ("GET", "http://evil.example/", "127.0.0.1", None),
    ):
        raw = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        heard = await talk(with_port, raw.encode(), silence=20)
        lines = [line for line in heard.raw.decode().split("\r\n") if line.startswith("Location:")]
        assert (heard.statuses, lines) == (([308], [f"Location: {location}"]) if location else ([400], [])), target
        assert "secret" not in heard.raw.decode()
        assert heard.raw.count(b"X-Request-Id: ") == 1


async def _free_port() -> int:
    server = await start_raw_server(lambda *_: None, "127.0.0.1", 0)
    port = int(server.sockets[0].getsockname()[1])
    await server.close()
    return port


def test_files_that_are_no_good_are_named(files: Files, tmp_path: Path) -> None:
    """Each by its place in the configuration."""
    other = tmp_path / "other.pem"
    other.write_bytes(files.authority.issue_cert("localhost").private_key_pem.bytes())
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    encrypted = tmp_path / "encrypted.pem"
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"passphrase"),
        )
    )
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    good, missing = {"certificate": str(files.certificate), "key": str(files.key)}, str(tmp_path / "missing.pem")
    for tls, said in (
        ({**good, "certificate": missing}, f"server.tls.certificate: {missing} can't be read: No such file"),
        ({**good, "key": str(tmp_path)}, f"server.tls.key: {tmp_path} can't be read: Is a directory"),
        ({**good, "key": str(other)}, f"server.tls: key: {other} is not the key of {files.certificate}"),
        ({**good, "key": str(encrypted)}, f"server.tls: key: {encrypted} is encrypted"),
        (
            {"certificate": good["key"], "key": good["certificate"]},
            f"server.tls: certificate: {files.key} holds a key, and {files.certificate} a certificate: swap them",
        ),
        ({**good, "certificate": str(nonsense)}, "are not a certificate and its key in PEM form"),
        ({"certificate": str(files.certificate)}, "server.tls: give both certificate and key"),
        ({"redirect_port": 80}, "server.tls: redirect_port and hsts need certificate and key"),
    ):
        with pytest.raises(SettingsError) as caught:
            load(None, environment={}, flags={"server": {"tls": tls}})
        assert any(problem.startswith(said) or said in problem for problem in caught.value.problems), caught.value
    assert load(None, environment={}, flags={"server": {"tls": good}}).server.tls.key == files.key
    config = tmp_path / "gateway.yaml"
    config.write_text(
        yaml.safe_dump({"server": {"tls": {**good, "key": str(other)}}, "backends": [{"url": "http://a"}]})
    )
    for name in ("serve", "check"):
        result = CliRunner().invoke(main, [name, "--config", str(config)])
        assert result.exit_code == 2
        assert f"server.tls: key: {other} is not the key of {files.certificate}" in result.output


async def test_the_commands_ask_over_https(lab: Lab, files: Files) -> None:
    """A certificate of one's own is vouched for by --ca; --insecure takes any."""
    gateway = await start(lab, files)
    authority = lab.directory / "authority.pem"
    files.authority.cert_pem.write_to_path(str(authority))
    for options, code in (((), 1), (("--ca", str(authority)), 0), (("--insecure",), 0)):
        found = await command("keys", "list", "--url", gateway.url, *options, cwd=lab.directory)
        assert found[0] == code, found
        assert ("--ca FILE" in found[2]) == (code == 1)
