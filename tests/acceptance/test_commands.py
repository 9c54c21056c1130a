"""The commands, as a user runs them."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from PIL import Image

from tests.lab import Lab


async def command(
    *arguments: str, cwd: Path, limit: float = 60, environment: dict[str, str] | None = None
) -> tuple[int | None, str, str]:
    """Run one; (exit code, standard output, standard error)."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway",
        *arguments,
        cwd=cwd,
        env={
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PATH": "/usr/bin:/bin",
            "PYTHONUTF8": "1",
            **(environment or {}),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(limit):
        out, error = await process.communicate()
    return process.returncode, out.decode(), error.decode()


async def test_demo_once_saves_a_dozen_images(tmp_path: Path) -> None:
    code, out, error = await command("demo", "--once", "--port", "0", "--images", "pictures", cwd=tmp_path)
    assert code == 0, error
    assert "12 of 12 images saved" in out
    pictures = list((tmp_path / "pictures").iterdir())
    assert len(pictures) == 12
    for picture in pictures:
        with Image.open(picture) as image:
            assert image.size == (256, 256)
    colours = {Image.open(picture).convert("RGB").getpixel((0, 0)) for picture in pictures}
    assert len(colours) == 12
    assert "Traceback" not in error


async def test_check(lab: Lab) -> None:
    simulator = await lab.simulator()
    good = lab.directory / "good.yaml"
    good.write_text(f"backends: [{{url: '{simulator.url}', name: gpu0}}]")
    code, out, _ = await command("check", "--config", str(good), cwd=lab.directory)
    assert code == 0
    assert all(text in out for text in ("gpu0", "yes", "0.33.0", "24.0 GiB", "0 running, 0 pending"))
    good.write_text(f"backends: [{{url: '{simulator.url}'}}, {{url: 'http://127.0.0.1:1'}}]")
    code, out, _ = await command("check", "--config", str(good), cwd=lab.directory)
    assert code == 1
    assert "no: connection refused" in out
    good.write_text("backends: [{url: 'http://a'}, {url: 5}]\nprob: {}")
    code, _, error = await command("check", "--config", str(good), cwd=lab.directory)
    assert code == 2
    assert "backends[1].url: " in error
    assert "prob: there is no such setting" in error


async def test_serve_says_what_is_missing(tmp_path: Path) -> None:
    code, _, error = await command("serve", cwd=tmp_path)
    assert code == 2
    assert "--backend" in error
    code, _, error = await command("serve", "--backend", "ftp://x", cwd=tmp_path)
    assert code == 2
    assert "backends[0].url" in error


async def test_a_taken_port_is_said_so(lab: Lab) -> None:
    simulator = await lab.simulator()
    options = ("serve", "--backend", simulator.url, "--port", str(simulator.port), "--data-dir", "d")
    code, _, error = await command(*options, cwd=lab.directory)
    assert code == 1
    assert "can't listen" in error
    assert "Traceback" not in error


async def test_simulate_ends_with_0_and_refuses_unknown_faults(lab: Lab) -> None:
    simulator = await lab.simulator("--fail", "slow:0.01")
    simulator.signal(signal.SIGINT)
    assert await simulator.wait() == 0
    code, _, error = await command("simulate", "--fail", "nonsense", cwd=lab.directory)
    assert code == 2
    assert "there is no such fault" in error
