"""Settings of webhooks: each error names its place, and none repeats a URL or a secret."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
import yaml

from gateway.preflight import warnings
from gateway.settings import SettingsError, load
from gateway.settings.webhooks import checked_secret, split_url
from gateway.webhooks.model import OF_BACKENDS, OF_JOBS, TERMINAL
from tests.support.commands import command

SECRET = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
ENDPOINT = {"name": "ops", "tenant": "boss", "url": "https://a.example/hunter2", "secret": SECRET}


def webhooks_of(tmp_path: Path, **settings: object) -> str:
    """Load a configuration with these settings; the errors, if there are any, and else what it shows of itself."""
    path = tmp_path / "gateway.yaml"
    path.write_text(yaml.safe_dump({"webhooks": settings}))
    try:
        return repr(load(path, environment={}).webhooks)
    except SettingsError as error:
        return str(error)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"url": "https://hunter2:x@a.example/"}, "webhooks.endpoints[0].url: must not hold a user"),
        ({"url": "hunter2"}, "webhooks.endpoints[0].url: must be a URL"),
        ({"secret": "hunter2"}, "webhooks.endpoints[0].secret: must be whsec_"),
        ({"secret": "whsec_hunter2"}, "webhooks.endpoints[0].secret: must be whsec_"),
        ({"events": ["job.done"]}, "webhooks.endpoints[0].events[0]: must be one of job.queued"),
        ({"events": []}, "webhooks.endpoints[0].events"),
        ({"name": "a b"}, "webhooks.endpoints[0].name: must be 1 to 64 letters"),
        ({}, "name='ops'"),
    ],
)
def test_endpoints_of_the_file(changed: dict[str, object], said: str, tmp_path: Path) -> None:
    found = webhooks_of(tmp_path, endpoints=[{**ENDPOINT, **changed}])
    assert said in found
    assert "hunter2" not in found
    assert SECRET not in found


async def test_urls_that_may_not_be_called_are_errors_of_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    said = {
        "http://a.example/hunter2": "must begin with https://",
        "https://a.example:8443/hunter2": "port is not permitted",
        "https://10.0.0.1/hunter2": "not public",
        "https://a.example/hunter2": "",
    }
    endpoints = [{**ENDPOINT, "name": f"e{place}", "url": url} for place, url in enumerate(said)]
    path.write_text(yaml.safe_dump({"webhooks": {"endpoints": endpoints}, "backends": [{"url": "http://127.0.0.1:1"}]}))
    code, out, error = await command("serve", "--config", str(path), cwd=tmp_path)
    assert (code, out) == (2, "")
    found = dict(re.findall(r"webhooks\.endpoints\[(\d)\]\.url: (.*)", error))
    assert found.keys() == {"0", "1", "2"}
    assert all(part in found[str(place)] for place, part in enumerate(said.values()) if part)
    assert "hunter2" not in error


def test_networks_that_hold_a_backend_are_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    backends = [{"url": f"http://{host}:8188", "name": f"{host[0]}0"} for host in ("10.0.0.5", "localhost", "comfy")]
    for networks, named in ((["10.0.0.0/8"], ["10"]), (["127.0.0.0/8", "::/0"], ["l0"]), (["192.168.0.0/16"], [])):
        path.write_text(yaml.safe_dump({"webhooks": {"allow_networks": networks}, "backends": backends}))
        found = [each for each in warnings(load(path, environment={})) if "webhooks.allow_networks" in each]
        assert [each.partition("(")[2].partition(")")[0] for each in found] == named


def test_two_endpoints_need_two_names(tmp_path: Path) -> None:
    assert "given twice: ops" in webhooks_of(tmp_path, endpoints=[ENDPOINT, ENDPOINT])
    open_one = {**ENDPOINT, "url": "http://10.0.0.1:9000/x"}
    found = webhooks_of(tmp_path, endpoints=[open_one], allow_http=True, allow_networks=["10.0.0.0/8"])
    assert "allow_http=True" in found


@pytest.mark.parametrize("given", ["443, 8443", "any", None, [443, 8443]])
def test_ports(given: object, tmp_path: Path) -> None:
    found = webhooks_of(tmp_path, ports=given)
    assert f"ports={None if given in ('any', None) else (443, 8443)}" in found


@pytest.mark.parametrize(
    "url",
    ["https://a.example/x y", "https://a.example/\u00e9", "https://[::1/", "https://a:x/", "ftp://a/", "x" * 3000],
)
def test_urls_that_are_none(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must|at most|malformed"):
        split_url(url)
    assert "webhooks.public_url:" in webhooks_of(tmp_path, public_url=url)


@pytest.mark.parametrize("size", [0, 23, 24, 64, 65])
def test_secrets_have_24_to_64_bytes(size: int) -> None:
    text = "whsec_" + base64.b64encode(bytes(size)).decode()
    if 24 <= size <= 64:
        assert checked_secret(text) == text
    else:
        with pytest.raises(ValueError, match="24 to 64"):
            checked_secret(text)


def test_the_events_are_those_of_the_model() -> None:
    assert OF_JOBS >= TERMINAL
    assert {str(each) for each in OF_JOBS | OF_BACKENDS} == {
        *("job.queued job.started job.succeeded job.failed job.cancelled".split()),
        *("backend.down backend.up backend.poisoned".split()),
    }
