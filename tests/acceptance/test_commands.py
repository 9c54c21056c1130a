"""The commands, as a user runs them."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

from PIL import Image

from tests.support.commands import command
from tests.support.lab import Lab


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
    other = await lab.simulator("--loras", "style", "--without", "ImageBlur")
    backends = [{"url": url} for url in (simulator.url, other.url, "http://127.0.0.1:1")]
    good.write_text(json.dumps({"backends": backends}))
    code, out, _ = await command("check", "--config", str(good), cwd=lab.directory)
    assert code == 1
    assert "no: connection refused" in out
    assert "b1: lacks models or other choices that others have (1): style.safetensors" in out
    assert "b2: lacks node classes that others have (1): ImageBlur" in out
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
    options = ("serve", "--backend", "http://127.0.0.1:1", "--port", str(simulator.port), "--data-dir", "d")
    code, _, error = await command(*options, cwd=lab.directory)
    assert code == 1
    said = f"comfyui-gateway: can't listen on 127.0.0.1:{simulator.port}: Address already in use; another program "
    assert said in error
    assert "Traceback" not in error


async def test_simulate_ends_with_0_and_refuses_unknown_faults(lab: Lab) -> None:
    simulator = await lab.simulator("--fail", "slow:0.01")
    simulator.signal(signal.SIGINT)
    assert await simulator.wait() == 0
    code, _, error = await command("simulate", "--fail", "nonsense", cwd=lab.directory)
    assert code == 2
    assert "there is no such fault" in error


async def test_a_key_for_the_configuration(lab: Lab) -> None:
    """What is printed works as it is, also with names that YAML would read as something else."""
    lines, keys = [], {}
    for name, more in (
        ("anna", ["--expires", "30d"]),
        ("1.5", ["--role", "admin", "--tenant", "no"]),
        ("off", ["--expires", "2099-12-24"]),
    ):
        code, out, error = await command("keys", "create", name, *more, cwd=lab.directory)
        assert (code, error) == (0, "")
        (keys[name],) = re.findall(r"^    (cgw_\w{32})$", out, re.MULTILINE)
        lines += [line for line in out.splitlines() if line.startswith("    - {")]
    assert len(lines) == len(set(keys.values())) == 3
    assert not any(key in line for key in keys.values() for line in lines)
    assert list(lab.directory.iterdir()) == []
    config = lab.directory / "gateway.yaml"
    config.write_text("auth:\n  keys:\n" + "\n".join(lines) + "\n")
    gateway = await lab.gateway(await lab.simulator(), options=("--config", str(config)))
    for name, key in keys.items():
        async with lab.http.get(f"{gateway.url}/gateway/keys", headers={"X-API-Key": key}) as answer:
            assert answer.status == (200 if name == "1.5" else 403), name
            if answer.status == 200:
                rows = {row["name"]: row for row in (await answer.json())["keys"]}
    assert list(rows) == ["1.5", "anna", "off"]
    assert (rows["1.5"]["tenant"], rows["off"]["expires"]) == ("no", "2099-12-24T00:00:00Z")


async def test_what_is_wrong_with_a_key_is_said(tmp_path: Path) -> None:
    for arguments, said in (
        (("create", "a b"), "letters"),
        (("create", "-"), "letters"),
        (("create", "a", "--tenant", "a/b"), "letters"),
        (("create", "a", "--role", "root"), "root"),
        (("create", "a", "--expires", "soon"), "30d"),
        (("create", "a", "--expires", "2020-01-01"), "past"),
        (("list", "--url", "ftp://x"), "--url"),
        (("list", "--url", "http://key@127.0.0.1:1"), "--url"),
    ):
        code, out, error = await command("keys", *arguments, cwd=tmp_path)
        assert (code, out) == (2, ""), arguments
        assert said in error
    code, _, error = await command("keys", "list", "--url", "http://127.0.0.1:1", cwd=tmp_path)
    assert (code, "can't be asked" in error, "Traceback" in error) == (1, True, False)


async def test_an_admins_key_comes_to_those_of_the_file(lab: Lab) -> None:
    config = lab.directory / "gateway.yaml"
    config.write_text("auth: {keys: [{name: anna, key: key-of-the-file}]}\n")
    options = ("--config", str(config), "--admin-key", "key-of-the-flag-1")
    gateway = await lab.gateway(await lab.simulator(), options=options)
    for key, status in (("key-of-the-file", 403), ("key-of-the-flag-1", 200), ("key-of-the-flag-2", 401)):
        async with lab.http.get(f"{gateway.url}/gateway/keys", headers={"X-API-Key": key}) as answer:
            assert answer.status == status
