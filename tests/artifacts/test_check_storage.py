"""``check --storage`` with a folder. A real server is in tests/services."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.artifacts.object_store import ObjectStore, StorageError
from gateway.artifacts.probe import try_store
from gateway.settings.storage import StorageSettings
from tests.support.commands import command


def configuration(folder: Path, **storage: object) -> str:
    path = folder / "gateway.yaml"
    path.write_text(json.dumps({"backends": [{"url": "http://127.0.0.1:1"}], "storage": storage}))
    return str(path)


async def test_a_folder(tmp_path: Path) -> None:
    given = configuration(tmp_path, url=f"file://{tmp_path}/objects", links="signed")
    code, out, error = await command("check", "--storage", "--config", given, cwd=tmp_path)
    assert (code, error) == (0, "")
    assert out.splitlines()[1:] == [f"  {step}: ok" for step in ("put", "get", "range", "list", "delete")]
    assert not [each for each in (tmp_path / "objects").rglob("*") if each.is_file()]


async def test_a_folder_that_can_not_be_used(tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir()
    # Where a folder should be is a file; rights would not stop the administrator.
    (tmp_path / "objects" / "probe").write_text("")
    given = configuration(tmp_path, url=f"file://{tmp_path}/objects")
    code, out, _ = await command("check", "--storage", "--config", given, cwd=tmp_path)
    assert code == 1
    assert f"put: writing an object at file://{tmp_path}/objects: " in out
    with pytest.raises(StorageError) as caught:
        await try_store(ObjectStore.of(StorageSettings(url=f"file://{tmp_path}/objects")))
    assert caught.value.message in out


async def test_no_storage_is_set(tmp_path: Path) -> None:
    code, _, error = await command("check", "--storage", "--config", configuration(tmp_path), cwd=tmp_path)
    assert (code, "storage.url is not set" in error) == (2, True)
    code, _, error = await command("check", "--storage", "--backend", "http://127.0.0.1:1", cwd=tmp_path)
    assert (code, "--storage goes with --config alone" in error) == (2, True)


async def test_all_is_well() -> None:
    await try_store(ObjectStore.of(StorageSettings(url="memory:")))


async def test_check_refuses_what_serve_refuses(tmp_path: Path) -> None:
    given = configuration(tmp_path, url="gs://bucket", service_account=str(tmp_path / "none.json"))
    code, _, error = await command("check", "--config", given, cwd=tmp_path)
    assert code == 1
    assert f"comfyui-gateway: storage: {tmp_path}/none.json: No such file" in error
    # It makes nothing.
    code, _, error = await command(
        "check", "--config", configuration(tmp_path, url=f"file://{tmp_path}/none"), cwd=tmp_path
    )
    assert "storage" not in error
    assert not (tmp_path / "none").exists()
    _, _, error = await command("check", "--config", configuration(tmp_path, url="memory:"), cwd=tmp_path)
    assert "warning: storage.url: memory: keeps files in the gateway's memory" in error
