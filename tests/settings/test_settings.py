"""The configuration: sources, and errors with their path."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from gateway.preflight import warnings
from gateway.settings import ADMIN_KEYS, Settings, SettingsError, admin_keys_of, backends_of, keys_of, load
from gateway.settings.base_path import RESERVED
from gateway.tenants.roles import TABLE

EXAMPLE = Path(__file__).parents[2] / "config"
EXAMPLE_KEYS = {"OPERATOR_KEY": "a-key-of-some-length", "APP_KEY_SHA256": 32 * "0f"}


def problems(text: str, tmp_path: Path, **environment: str) -> list[str]:
    """What is said of a file."""
    path = tmp_path / "gateway.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(path, environment=environment)
    return caught.value.problems


def test_the_files_in_config_load() -> None:
    example = load(EXAMPLE / "gateway.example.yaml", environment=EXAMPLE_KEYS)
    assert [backend.name for backend in example.backends] == ["gpu0", "gpu1"]
    small = load(EXAMPLE / "gateway.yaml", environment={"APP_KEY": "a-key-of-some-length"})
    assert [backend.name for backend in small.backends] == ["b1", "b2"]


def test_the_example_shows_the_defaults() -> None:
    """Every setting is in the example, with its default, save what it says are example values."""
    example = load(EXAMPLE / "gateway.example.yaml", environment=EXAMPLE_KEYS).model_dump()
    defaults = load(None, environment={}).model_dump()
    for name in defaults.keys() - {"backends"}:
        if name == "auth":
            example[name]["keys"] = ()
        assert example[name] == defaults[name], name
    text = (EXAMPLE / "gateway.example.yaml").read_text()
    for section, values in defaults.items():
        for setting in values if isinstance(values, dict) else [section]:
            assert f"{setting}:" in text, f"{section}.{setting}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("backends: [{url: nonsense}]", "backends[0].url: must be http"),
        ("backends: [{url: 'http://a'}, {url: 'http://b', max_queue: 0}]", "backends[1].max_queue:"),
        ("backends: [{url: 'http://a:1'}, {url: 'http://a:1'}]", "each backend needs a url of its own"),
        ("backends: [{url: 'http://u:p@a:1'}]", "backends[0].url:"),
        ("probe: {interval: -1}", "probe.interval:"),
        ("probe: {intervall: 1}", "probe.intervall: there is no such setting"),
        ("auth: {keys: [{name: a}]}", "auth.keys[0]: give either sha256 or key"),
        (
            "auth: {keys: [{name: a, key: '${MISSING}'}]}",
            "auth.keys[0].key: the environment variable MISSING is not set",
        ),
        ("auth: {keys: [{name: a, key: short}]}", "auth.keys[0]: key must have"),
        ("auth: {keys: [{name: a, key: change-me-now}]}", "auth.keys[0]: this key stands in examples"),
        (
            f"auth: {{keys: [{{name: a, sha256: {hashlib.sha256(b'password').hexdigest()}}}]}}",
            "auth.keys[0]: this key stands in examples",
        ),
        ("auth: {keys: [{name: a b, key: long-enough}]}", "auth.keys[0].name: must be 1 to 64 letters"),
        (
            "auth: {keys: [{name: a, key: long-enough, tenant: 'a\\nb'}]}",
            "auth.keys[0].tenant: must be 1 to 64 letters",
        ),
        ("auth: {keys: [{name: a, key: long-enough, expires: soon}]}", "auth.keys[0].expires:"),
        ("auth: {lockout: {after: -1}}", "auth.lockout.after:"),
        ("tenants: {anonymous: {tenant: 'a/b'}}", "tenants.anonymous.tenant: must be"),
        ("cors: {origins: ['*']}", "cors.origins:"),
        ("server: {base_path: comfy}", "server.base_path: must be a path such as /comfy"),
        ("server: {base_path: 'https://a/comfy'}", "server.base_path: must be a path such as /comfy"),
        ("server: {base_path: /a/../b}", "server.base_path: must be a path such as /comfy"),
        ("server: {base_path: /api/x}", "server.base_path: must not begin with /api, because that is a route"),
        ("[1, 2]", "must be a mapping"),
        ("a: [", "is not YAML"),
        ("server: {port: 99999}", "server.port:"),
        ("backends: [{url: 'http://a', tenants: ['a b']}]", "backends[0].tenants[0]: must be 1 to 64 letters"),
        (
            "backends: [{url: 'http://a'}, {url: 'http://b', primary: true, tenants: [anna]}]",
            "backends[1]: a backend that is dedicated to tenants can't be the primary",
        ),
        (
            "{backends: [{url: 'http://a', labels: [eu]}, {url: 'http://b', tenants: [anna]}], "
            "tenants: {default: {labels: [eu]}}}",
            "backends[1].tenants: the tenant 'anna' may use backends with the labels eu only",
        ),
        (
            "{backends: [{url: 'http://a', tenants: [anna]}], tenants: {named: {ben: {}}}}",
            "tenants.named.ben: every backend that its labels allow is dedicated to other tenants",
        ),
        ("tenants: {default: {nodes: {trust: ['']}}}", "tenants.default.nodes.trust[0]:"),
        ("tenants: {default: {models: {trust: [a]}}}", "tenants.default.models.trust: there is no such setting"),
    ],
)
def test_errors_name_the_place(text: str, said: str, tmp_path: Path) -> None:
    assert any(said in problem for problem in problems(text, tmp_path)), problems(text, tmp_path)


def test_no_base_path_takes_requests_for_a_route_away(tmp_path: Path) -> None:
    assert (
        load(None, environment={}, flags={"server": {"base_path": "/comfy/a.b-c_d~/"}}).server.base_path.count("/") == 2
    )
    firsts = {row.path.split("/")[1] for row in TABLE} - {"", "**"}
    assert firsts == RESERVED
    for first in ("WS", *sorted(firsts)):
        said = problems(f"server: {{base_path: /{first}/x}}", tmp_path)
        assert len(said) == 1
        assert said[0].startswith(f"server.base_path: must not begin with /{first.lower()}, because that is a route")


def test_a_secret_is_not_repeated_in_an_error(tmp_path: Path) -> None:
    text = "auth: {keys: [{name: a, key: hunter2, sha256: x}]}"
    assert "hunter2" not in "\n".join(problems(text, tmp_path))


def test_all_problems_are_said(tmp_path: Path) -> None:
    assert len(problems("probe: {interval: 0, timeout: 0}", tmp_path)) == 2


def test_layers(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("server: {port: 1000, host: 127.0.0.2}\nprobe: {interval: 7}\n")
    environment = {
        "COMFYUI_GATEWAY_PORT": "2000",
        "COMFYUI_GATEWAY_PROBE__TIMEOUT": "9",
        "COMFYUI_GATEWAY_BACKENDS": "a:1, http://b:2",
        "COMFYUI_GATEWAY_CORS__ORIGINS": "https://x.example, https://y.example,",
    }
    settings = load(path, environment=environment, flags={"server": {"port": 3000}})
    assert settings.server.port == 3000
    assert settings.server.host == "127.0.0.2"
    assert settings.probe.interval == 7
    assert settings.probe.timeout == 9
    assert [backend.url for backend in settings.backends] == ["http://a:1", "http://b:2"]
    assert settings.cors.origins == ("https://x.example", "https://y.example")
    with pytest.raises(SettingsError, match="COMFYUI_GATEWAY_NOPE"):
        load(None, environment={"COMFYUI_GATEWAY_NOPE": "1"})


def test_bare_keys_have_names_that_do_not_depend_on_their_order() -> None:
    assert keys_of(["a", "b"])[0]["name"] == keys_of(["b", "a"])[1]["name"]
    assert backends_of(["h:1"]) == [{"url": "http://h:1"}]


def test_admins_keys_come_to_those_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("auth: {keys: [{name: a, key: key-of-the-file}]}")
    environment = {"COMFYUI_GATEWAY_ADMIN_KEYS": "key-of-an-admin, another-of-his"}
    settings = load(path, environment=environment)
    assert [(key.name[:6], key.role) for key in settings.auth.keys] == [
        ("a", "user"),
        ("admin-", "admin"),
        ("admin-", "admin"),
    ]
    flags = {ADMIN_KEYS: admin_keys_of(["key-of-the-flag"]), "auth": {"keys": keys_of(["key-of-a-user"])}}
    roles = [(key.key, key.role) for key in load(path, environment=environment, flags=flags).auth.keys]
    assert roles == [("key-of-a-user", "user"), ("key-of-the-flag", "admin")]
    assert load(None, environment=environment).auth.keys[0].role == "admin"
    path.write_text("admin keys: [{name: a, key: key-of-the-file}]")
    with pytest.raises(SettingsError, match="no such setting"):
        load(path, environment={})


@pytest.mark.parametrize("text", ["2026-12-24", "2026-12-24T00:00:00Z", "2026-12-24 01:00:00+01:00", "'2026-12-24'"])
def test_when_a_key_expires(text: str, tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(f"auth: {{keys: [{{name: a, key: key-of-the-file, expires: {text}}}]}}")
    (key,) = load(path, environment={}).auth.keys
    assert key.expires is not None
    assert key.expires.timestamp() == 1798070400


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("30", 30),
        ("30s", 30),
        ("1.5", 1.5),
        ("500ms", 0.5),
        ("2m", 120),
        ("1h30m", 5400),
        ("1 h 30 m", 5400),
        ("1d", 86400),
    ],
)
def test_times_take_units(text: str, value: float, tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(f"probe: {{interval: {text}}}")
    assert load(path, environment={}).probe.interval == value
    assert load(None, environment={"COMFYUI_GATEWAY_PROBE__INTERVAL": text}).probe.interval == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("1000", 1000), ("1B", 1), ("100MB", 10**8), ("64MiB", 2**26), ("1.5 GiB", 3 * 2**29), ("2tb", 2 * 10**12)],
)
def test_sizes_take_units(text: str, value: int, tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(f"uploads: {{quota: {text}}}")
    assert load(path, environment={}).uploads.quota == value
    assert load(None, environment={"COMFYUI_GATEWAY_UPLOADS__QUOTA": text}).uploads.quota == value


@pytest.mark.parametrize("text", ["10M", "1.5B", "-1MB", "MB", "1 e3", "10s", "1MB 2MB", "1_000KB"])
def test_what_is_no_size(text: str, tmp_path: Path) -> None:
    (said,) = problems(f"uploads: {{quota: '{text}'}}", tmp_path)
    assert said == f"uploads.quota: must be a size of at least 1, such as 20GiB; found '{text}'"


@pytest.mark.parametrize("host", ["::1", "[::1]", " 127.0.0.1 ", "localhost", "0.0.0.0", "gpu-box.lan"])
def test_hosts_that_can_be_listened_on(host: str) -> None:
    settings = load(None, environment={"COMFYUI_GATEWAY_HOST": host})
    assert settings.server.host == host.strip(" []")


def test_keys_given_twice_are_all_told(tmp_path: Path) -> None:
    text = "server:\n  port: 1\n  port: 2\nbackends:\n  - {url: http://a, url: http://b}\nserver: {}\n"
    path = tmp_path / "gateway.yaml"
    assert problems(text, tmp_path) == [
        f"{path}: server.port is given twice, in lines 2 and 3; keep one, and put all entries under it",
        f"{path}: backends[0].url is given twice, in line 5; keep one, and put all entries under it",
        f"{path}: server is given twice, in lines 1 and 6; keep one, and put all entries under it",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data_dir: !!bool x", "is not YAML"),
        ("backends: [{url: http://gpu..lan:8188}]", "backends[0].url: must be http"),
        (f"backends: [{{url: http://{64 * 'a'}.lan:8188}}]", "backends[0].url: must be http"),
        ("backends: [{url: 'http://gpu\\lan:8188'}]", "backends[0].url: must be http"),
        ("data_dir: !!int ''", "is not YAML"),
        ("data_dir: !!timestamp x", "is not YAML"),
        (f"server: {{port: 0x{5_000 * 'f'}}}", "server.port: must be"),
        (f"server: {{port: -0x{5_000 * 'f'}}}", "server.port: must be"),
        (f"log: {{file: {5_000 * 'x'}}}", "log.file: xxx"),
        ('data_dir: "a\\0b"', "data_dir: holds a NUL character"),
        ('backends: [{url: http://a, name: "\\ud800"}]', "backends[0].name: holds a NUL character"),
        ('server: {"\\ud800": 1}', "line 1: a setting's name holds a NUL character"),
        ("server: {host: '${HOST}'}", "server.host: the environment variable HOST is not UTF-8 text"),
    ],
)
def test_odd_values_are_refused_in_a_sentence(text: str, said: str, tmp_path: Path) -> None:
    found = problems(text, tmp_path, HOST="\udcff")
    assert len(found) == 1
    assert said in found[0]


@pytest.mark.parametrize("name", ["API_KEYS", "ADMIN_KEYS", "BACKENDS", "SERVER__HOST"])
def test_variables_that_are_no_text_are_refused(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(environment={f"COMFYUI_GATEWAY_{name}": "\udcff"})
    assert caught.value.problems == [f"COMFYUI_GATEWAY_{name}: is not UTF-8 text"]
    assert load(environment={"COMFYUI_GATEWAY_DATA_DIR": "\udcff"}).data_dir == Path("\udcff")


@pytest.mark.parametrize("text", ["a: &x [*x]", "a: &x {b: *x}", "a: " + 60 * "[" + 60 * "]", "a: " + 1500 * "["])
def test_endless_files_are_refused(text: str, tmp_path: Path) -> None:
    assert len(problems(text, tmp_path)) == 1


def test_messages_name_the_variable() -> None:
    environment = {"COMFYUI_GATEWAY_PORT": "http", "COMFYUI_GATEWAY_PROBE__INTERVALL": "1"}
    with pytest.raises(SettingsError) as caught:
        load(None, environment=environment)
    assert caught.value.problems == [
        "COMFYUI_GATEWAY_PROBE__INTERVALL: there is no such setting; did you mean COMFYUI_GATEWAY_PROBE__INTERVAL?"
    ]
    del environment["COMFYUI_GATEWAY_PROBE__INTERVALL"]
    with pytest.raises(SettingsError, match=r"^server.port \(from COMFYUI_GATEWAY_PORT\): must be a whole number"):
        load(None, environment=environment)
    assert load(None, environment=environment, flags={"server": {"port": 1}}).server.port == 1


@pytest.mark.parametrize(
    "text",
    [
        "hunter22",
        "[hunter22]",
        "auth: hunter22",
        "auth: {keys: hunter22}",
        "auth: {keys: [hunter22]}",
        "auth: {keys: [{name: a, key: [hunter22]}]}",
        "auth: {keys: [{name: hunter22 hunter22, key: a}]}",
        "auth: {keys: [{name: a, key: 'x', sha256: hunter22}]}",
        "auth: {keys: [{name: a, key: hunter22, expires: hunter22}]}",
        "auth: {keys: [{name: a, secret: hunter22}]}",
        "auth: {keys: [{name: a, key: hunter22}",
        "auth: {keys: [{name: a, key: ${hunter22-x}}]}",
        "auth: {keys: [{name: a, key: '${hunter22-x}'}]}",
        "backends: [http://u:hunter22@a]",
        "backends: [{url: 'http://u:hunter22@a'}]",
        "backends: [{url: 'http://a?key=hunter22'}]",
        "backends: [{url: 'hunter22://a'}]",
        "backends: [{url: 'http://a', auth: hunter22}]",
        "backends: [{url: 'http://a', auth: [hunter22]}]",
        "backends: [{url: 'http://a', auth: {user: [hunter22]}}]",
    ],
)
def test_no_message_shows_what_may_be_a_secret(text: str, tmp_path: Path) -> None:
    assert "hunter22" not in "\n".join(problems(text, tmp_path))


PYTHONS_WORDS = re.compile(
    r"Input should|valid (tuple|dictionary|string)|instance of|Settings\b|Field required|NoneType|None\b|"
    r"<block|scalar|(?<!session_)token|parsing|mark|unicode string"
)


@pytest.mark.parametrize("value", ["null", "5", "1.5", "yes", "text", "[a]", "{a: 1}", "2026-01-01", "''", "-1"])
def test_no_message_speaks_of_python(value: str, tmp_path: Path) -> None:
    """Each setting is given a value of each kind; what is refused is refused in words of the file."""

    def walk(model: type[BaseModel], path: tuple[str, ...]) -> list[tuple[str, ...]]:
        found: list[tuple[str, ...]] = []
        for name, field in model.model_fields.items():
            found.append((*path, name))
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                found += walk(field.annotation, (*path, name))
        return found

    given = yaml.safe_load(value)
    for path in walk(Settings, ()):
        flags: Any = given
        for part in reversed(path):
            flags = {part: flags}
        try:
            load(None, environment={}, flags=flags)
        except SettingsError as error:
            for problem in error.problems:
                assert problem.startswith(path[0]), problem
                assert not PYTHONS_WORDS.search(problem), problem


def test_former_names_are_taken_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(
        "{dispatch: {backoff_most: 7s, take_over: false}, ejection: {most: 1m}, auth: {lockout: {most: 9s}}}"
    )
    settings = load(path, environment={"COMFYUI_GATEWAY_DISPATCH__BACKOFF_MOST": "8s"})
    assert (settings.dispatch.max_backoff, settings.dispatch.work_stealing) == (8, False)
    assert (settings.ejection.max_time, settings.auth.lockout.max_time) == (60, 9)
    assert sorted(settings.former_names) == [
        "COMFYUI_GATEWAY_DISPATCH__BACKOFF_MOST: this variable is called COMFYUI_GATEWAY_DISPATCH__MAX_BACKOFF now; "
        "the next release refuses COMFYUI_GATEWAY_DISPATCH__BACKOFF_MOST",
        "auth.lockout.most: this setting is called auth.lockout.max_time now; the next release refuses "
        "auth.lockout.most",
        "dispatch.backoff_most: this setting is called dispatch.max_backoff now; the next release refuses "
        "dispatch.backoff_most",
        "dispatch.take_over: this setting is called dispatch.work_stealing now; the next release refuses "
        "dispatch.take_over",
        "ejection.most: this setting is called ejection.max_time now; the next release refuses ejection.most",
    ]
    assert all(each in warnings(settings) for each in settings.former_names)


def test_a_former_name_beside_the_present_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("{ejection: {most: 1m, max_time: 2m}}")
    with pytest.raises(SettingsError) as error:
        load(path, environment={})
    assert error.value.problems == [
        "ejection.most: this is the former name of ejection.max_time, which is given as well; remove it"
    ]
