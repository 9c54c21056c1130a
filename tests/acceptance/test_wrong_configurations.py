"""Wrong configurations: `check` and `serve` refuse each with the same words and the same exit code."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.cli.main import main
from gateway.preflight import warnings
from gateway.settings import load
from tests.support import disk
from tests.support.commands import command
from tests.support.lab import Lab

NUMBERS = "must be a whole number of at least 0 and at most 65535, such as 8288"
HOSTS = "give an address such as 127.0.0.1 (this machine alone), 0.0.0.0 (all of IPv4) or :: (all of IPv6)"
URLS = "must be http://HOST:PORT or https://HOST:PORT, such as http://127.0.0.1:8188"
LISTS = "must be a list, such as [{url: http://127.0.0.1:8188}]"
OPEN = """refusing to listen on 0.0.0.0 without a key: everybody who can reach it could run workflows and see
all images. Give a key (--api-key KEY, or auth.keys in the file), or say --no-auth if that is meant."""
NO_BACKEND = "no backend is given: add --backend http://HOST:8188 for each ComfyUI, or backends in the file"
# What the file holds, and what is said of it; FILE stands for its path.
WRONG = [
    (
        "",
        NO_BACKEND,
    ),
    (
        "# nothing but a comment",
        NO_BACKEND,
    ),
    (
        "[1, 2]",
        "FILE: must be a mapping of settings, such as 'backends: [{url: http://127.0.0.1:8188}]'",
    ),
    (
        "backends: http://127.0.0.1:8188",
        f"backends: {LISTS}; found a text",
    ),
    (
        "backends: {url: 'http://127.0.0.1:8188'}",
        f"backends: {LISTS}; found a mapping",
    ),
    (
        "backends: ['http://127.0.0.1:8188']",
        "backends[0]: must be a mapping, such as {url: http://127.0.0.1:8188}; found a text",
    ),
    (
        "backends: [{name: gpu0}]",
        "backends[0]: url is missing; give it, as in {url: http://127.0.0.1:8188}",
    ),
    (
        "backends:",
        f"backends: {LISTS}; found nothing",
    ),
    (
        "backends: [{url: 'gpu0:8188'}]",
        f"backends[0].url: {URLS}; the scheme http:// is missing",
    ),
    (
        "backends: [{url: 'unix:/run/comfyui.sock'}]",
        f"backends[0].url: {URLS}; Unix sockets are not supported",
    ),
    (
        "backends: [{url: 'http://user:hunter22@gpu0:8188'}]",
        f"backends[0].url: {URLS}; credentials belong to auth: {{user: …, password: …}}",
    ),
    (
        "backends: [{url: 'http://gpu0:8188?token=hunter22'}]",
        f"backends[0].url: {URLS}; a query is not allowed",
    ),
    (
        "backends: [{url: 'http://gpu0:8188', auth: {user: a}}]",
        'backends[0].auth: user goes with a password, such as password: "${PASSWORD}"; if it is empty, password: ""',
    ),
    (
        "backends: [{url: 'http://::1:8188'}]",
        f"backends[0].url: {URLS}; an IPv6 address needs brackets, as in http://[::1]:8188",
    ),
    (
        "backends: [{url: 'http://127.0.0.1:84920/x'}]",
        f"backends[0].url: {URLS}; the port is above 65535",
    ),
    (
        "backends: [{url: 'http://gpu0:99999'}]",
        f"backends[0].url: {URLS}; the port is above 65535",
    ),
    (
        "backends: [{url: 'http://gpu0:0'}]",
        f"backends[0].url: {URLS}; the host or the port can't be",
    ),
    (
        "backends: [{url: 'http://a:1'}, {url: 'http://A:1/'}]",
        "backends: each backend needs a url of its own; given twice: a:1",
    ),
    (
        "backends: [{url: 'http://localhost:8288'}]",
        "backends[0].url: http://localhost:8288 is where this gateway itself listens (server.host and "
        "server.port); give the ComfyUI's address, or the gateway another port",
    ),
    (
        "backends: [{url: 'http://a', labels: [big one]}]",
        "backends[0].labels[0]: must be 1 to 32 letters, digits and . _ -, the first a letter or digit, "
        "such as big; found 'big one'",
    ),
    (
        "backend: [{url: 'http://a'}]",
        "backend: there is no such setting; did you mean backends?",
    ),
    (
        "port: 80",
        "port: there is no such setting; did you mean server.port?",
    ),
    (
        "probe: {intervall: 1}",
        "probe.intervall: there is no such setting; did you mean probe.interval?",
    ),
    (
        "probe: {interval: 2 seconds}",
        "probe.interval: must be a time above 0 and at most 1d, such as 2s; found '2 seconds'",
    ),
    (
        "probe: {interval: 0}",
        "probe.interval: must be a time above 0 and at most 1d, such as 2s; found 0",
    ),
    (
        "server: {port: 99999}",
        f"server.port: {NUMBERS}; found 99999",
    ),
    (
        "server: {port: yes}",
        f"server.port: {NUMBERS}; found true (YAML reads yes and on as true, no and off as false)",
    ),
    (
        "server: {host: 'unix:/run/gateway.sock'}",
        f"server.host: Unix sockets are not supported; {HOSTS}",
    ),
    (
        "server: {host: '127.0.0.1:8288'}",
        f"server.host: must be an address or a host name, without scheme, port or path; {HOSTS}",
    ),
    (
        "server: {max_body: 100XB}",
        "server.max_body: must be a size of at least 1, such as 100MiB; found '100XB'",
    ),
    (
        "server: {trusted_proxies: 10.0.0.0/8}",
        "server.trusted_proxies: must be a list, such as [10.0.0.0/8]; found a text",
    ),
    (
        "server: {trusted_proxies: [10.0.0.1/8]}",
        "server.trusted_proxies[0]: must be a network or an address, such as 10.0.0.0/8; found "
        "'10.0.0.1/8'; did you mean 10.0.0.0/8?",
    ),
    (
        "server: {host: 0.0.0.0}\nbackends: [{url: 'http://127.0.0.1:1'}]",
        OPEN,
    ),
    (
        "auth: hunter22hunter22",
        "auth: must be a mapping, such as {metrics: key}; found a text",
    ),
    (
        "auth: {keys: [hunter22hunter22]}",
        'auth.keys[0]: must be a mapping, such as {name: app, key: "${APP_KEY}"}; found a text',
    ),
    (
        "auth: {keys: [{name: app, key: 1234567890123}]}",
        "auth.keys[0].key: must be a text; quote what YAML would read as a number or as yes or no; found a number",
    ),
    (
        "auth: {keys: [{name: app, key: ${APP_KEY}}]}",
        'FILE: line 1, column 33: is not YAML: a ${NAME} within { } or [ ] needs quotes, such as {key: "${APP_KEY}"}',
    ),
    (
        "auth: {keys: [{name: app, key: '${APP_KEY}'}]}",
        "auth.keys[0].key: the environment variable APP_KEY is not set; set it, or give a default: ${APP_KEY:-…}",
    ),
    (
        "auth: {keys: [{name: app, key: $APP_KEY}]}",
        "auth.keys[0].key: write ${APP_KEY} with braces for an environment variable, or $$ for a dollar sign",
    ),
    (
        "auth: {keys: [{name: app, key: hunter2}]}",
        "auth.keys[0]: key must have at least 8 characters; make one with: openssl rand -hex 16",
    ),
    (
        "auth: {keys: [{name: app, key: hunter22hunter22, role: amdin}]}",
        "auth.keys[0].role: must be one of user, admin, metrics; found 'amdin'; did you mean admin?",
    ),
    (
        "auth: {keys: [{name: my app, key: hunter22hunter22}]}",
        "auth.keys[0].name: must be 1 to 64 letters, digits and . _ - @ + (it stands in logs, metrics "
        "and paths), the first a letter or digit",
    ),
    (
        "auth: {keys: [{name: anna, key: hunter22hunter22}, {name: x, key: a-long-key}, "
        "{name: ben, key: hunter22hunter22}]}",
        "auth.keys[0] (anna) and auth.keys[2] (ben) are the same key; give each a key of its own, or take one of them "
        "out",
    ),
    (
        "auth: {keys: [{name: anna, key: hunter22hunter22, expires: 30d}]}",
        "auth.keys[0].expires: must be a date such as 2036-12-24; 30d is for the command line alone (keys create "
        "--expires 30d), because in a file it would begin anew with each start",
    ),
    (
        "log: {filename: /var/log/gateway.log}",
        "log.filename: there is no such setting; the setting is log.file: stderr, stdout or the path of a file",
    ),
    (
        "log: {file: /nowhere/at/all/gateway.log}",
        "log.file: there is no folder /nowhere/at/all; make it, for the gateway's user",
    ),
    (
        "log: {file: /}",
        "log.file: / is a folder; give the path of a file in it, such as /gateway.log",
    ),
    (
        "log: {file: ''}",
        "log.file: is empty; give stderr, stdout or the path of a file",
    ),
    (
        "log: {level: WARN}",
        "log.level: must be one of debug, info, warning, error; found 'WARN'; did you mean warning?",
    ),
    (
        "log: {requests: maybe}",
        "log.requests: must be true or false; found 'maybe'",
    ),
    (
        "tenants: {named: {anna: {limits: {jobs_running: 0}}}}",
        "tenants.named.anna.limits.jobs_running: must be a whole number of at least 1 and at most "
        "1000000, such as 10; found 0",
    ),
    (
        "uploads: {keep: 30}\nbackends: [{url: 'http://a'}]\nuploads: {quota: 1GB}",
        "FILE: uploads is given twice, in lines 1 and 3; keep one, and put all entries under it",
    ),
    (
        "backends:\n\t- url: http://a",
        "FILE: line 2, column 1: is not YAML: a tab; indent with spaces",
    ),
    (
        "server:\n  port: 1\n host: a",
        "FILE: line 3, column 2: is not YAML: an indentation that does not fit the lines above",
    ),
    (
        "cors: {origins: ['*']}",
        "cors.origins: '*' must be SCHEME://HOST[:PORT]; '*' is not accepted",
    ),
]
SECRET = "hunter2"
# The port of the file counts, so the variable that tests set is empty.
UNSET = {"COMFYUI_GATEWAY_PORT": ""}
GOOD = "backends: [{url: 'http://127.0.0.1:1'}]"


async def both(directory: Path, text: str) -> list[tuple[int, str]]:
    """Run `check` and `serve` on a file as processes: the exit code, and what each writes to standard error."""
    path = directory / "gateway.yaml"
    path.write_text(text)
    ends = []
    for verb in ("check", "serve"):
        code, _, error = await command(verb, "--config", path.name, cwd=directory, environment=UNSET)
        ends.append((code, error))
    return ends


def test_both_refuse_with_the_same_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This calls the commands in this process, because a hundred processes take half a minute."""
    assert len(WRONG) >= 40
    monkeypatch.chdir(tmp_path)
    wrong = []
    for text, said in WRONG:
        Path("FILE").write_text(text)
        for verb in ("check", "serve"):
            result = CliRunner().invoke(main, [verb, "--config", "FILE"])
            if (result.exit_code, result.output) != (2, f"comfyui-gateway: {said}\n"):
                wrong.append((text, verb, result.exit_code, result.output, said))
    assert not wrong
    monkeypatch.setenv("COMFYUI_GATEWAY_CONFIG", "FILE")
    assert CliRunner().invoke(main, ["check"]).output == result.output
    assert not any(SECRET in said for _, said in WRONG)


@pytest.mark.parametrize(("text", "said"), [WRONG[0], WRONG[len(WRONG) // 2]])
async def test_processes_end_as_the_commands_do(text: str, said: str, tmp_path: Path) -> None:
    expected = (2, f"comfyui-gateway: {said}\n")
    assert await both(tmp_path, text) == [expected, expected]


async def test_both_refuse_what_the_machine_refuses(lab: Lab) -> None:
    port = (await lab.simulator()).port
    (lab.directory / "file").write_text("")
    for name, sql in (("newer", "PRAGMA user_version=9999"), ("other", "")):
        (lab.directory / name).mkdir(mode=0o700)
        if sql:
            sqlite3.connect(lab.directory / name / "gateway.sqlite3").execute(sql)
        else:
            (lab.directory / name / "gateway.sqlite3").write_text("This is no journal." * 100)
    for text, said in (
        (
            f"server: {{port: {port}}}",
            f"can't listen on 127.0.0.1:{port}: Address already in use; another program listens there; "
            "end it, or choose another port\n",
        ),
        (
            "server: {port: 0}\ndata_dir: file",
            f"{lab.directory.resolve() / 'file'} (data_dir) can't be used as data directory: it is a file; give the "
            "path of a folder of the gateway's own\n",
        ),
        (
            "server: {port: 0}\ndata_dir: file/below",
            f"{lab.directory.resolve() / 'file/below'} (data_dir) can't be used as data directory: "
            f"{lab.directory / 'file'} is a file; give the path of a folder of the gateway's own\n",
        ),
        (
            "server: {port: 0}\ndata_dir: /proc/x/data",
            "/proc/x/data (data_dir) can't be used as data directory: no folder can be made in /proc (No such file or "
            "directory); give another path\n",
        ),
        ("server: {port: 0}\ndata_dir: newer", "the journal has schema version 9999, this gateway knows up to "),
        ("server: {port: 0}\ndata_dir: other", "other/gateway.sqlite3 can't be opened: it is damaged ("),
    ):
        checked, served = await both(lab.directory, f"{GOOD}\n{text}")
        assert checked[0] == served[0] == 1, (text, checked, served)
        for _, error in (checked, served):
            assert f"comfyui-gateway: {said}" in error, (text, error)


async def test_check_warns_of_a_disk_without_room(lab: Lab) -> None:
    try:
        small = disk.small_disk(lab.directory / "disk", 4)
        with small as place:
            text = f"{GOOD}\nserver: {{port: 0}}\ndata_dir: {place}/data"
            (lab.directory / "gateway.yaml").write_text(text)
            _, _, error = await command("check", "--config", "gateway.yaml", cwd=lab.directory, environment=UNSET)
    except PermissionError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    assert re.match(rf"warning: data_dir: the disk of {place}/data has \d\.\d MiB free, less than the 256 MiB", error)
    assert error.count("\n") == 1


async def test_check_makes_nothing_and_knows_a_running_gateway(lab: Lab) -> None:
    gateway = await lab.gateway(await lab.simulator())
    path = lab.directory / "gateway.yaml"
    path.write_text(f"{{server: {{port: {gateway.port}}}, data_dir: data, {GOOD}}}")
    code, out, error = await command("check", "--config", path.name, cwd=lab.directory, environment=UNSET)
    assert (code, error) == (1, ""), "the backend is not there"
    assert out.endswith(f"A gateway is running on {lab.directory / 'data'}; its address was not tried.\n")
    path.write_text(f"{{server: {{port: 0}}, data_dir: a/b, {GOOD}}}")
    code, _, error = await command("check", "--config", path.name, cwd=lab.directory, environment=UNSET)
    assert error == ""
    assert not (lab.directory / "a").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("server: {trusted_proxies: ['0.0.0.0/0']}", "server.trusted_proxies: 0.0.0.0/0 believes anybody's"),
        ("server: {trusted_proxies: ['::/0']}", "server.trusted_proxies: ::/0 believes anybody's"),
        ("server: {trusted_proxies: [10.0.0.0/8], host: 0.0.0.0}\nauth: {keys: [{name: a, key: a-long-key}]}", ""),
        ("server: {host: 0.0.0.0}\nauth: {disabled: true}", "auth.disabled: everybody who can reach 0.0.0.0 may"),
        ("server: {host: 0.0.0.0}\nauth: {keys: [{name: a, key: a-long-key}]}", "server.tls: keys and images cross"),
        ("auth: {keys: [{name: a, key: a-long-key, expires: 2020-01-01}]}", "auth.keys[0].expires: a expired at 2020"),
        ("auth: {keys: [{name: a, key: a-long-key, expires: 2999-01-01}]}", ""),
        ("server: {max_body: 100}", "server.max_body: 100 bytes is most likely a slip, because it is below 1MiB; a n"),
        ("uploads: {quota: 1}", "uploads.quota: 1 bytes is most likely a slip, because it is below 1MiB; a number"),
        ("store: {retention: {max_age: 1}}", "store.retention.max_age: 1s is most likely a slip, because it is below"),
        ("tenants: {named: {a: {limits: {upload_bytes: 2}}}}", "tenants.named.a.limits.upload_bytes: 2 bytes is most"),
        ("tenants: {default: {limits: {upload_bytes: 2}}, named: {a: {}}}", "tenants.default.limits.upload_bytes: 2"),
        ("userdata: {quota: 0}\nserver: {max_body: 1MiB}\nuploads: {keep: 1m}", ""),
        ("", ""),
    ],
)
def test_dangers(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(f"{GOOD}\n{text}")
    found = warnings(load(path, environment={}))
    assert [warning[: len(said)] for warning in found] == ([said] if said else [])


async def test_both_warn_with_the_same_words(lab: Lab) -> None:
    path = lab.directory / "gateway.yaml"
    path.write_text(
        "server: {trusted_proxies: ['0.0.0.0/0']}\n"
        "backends: [{url: 'http://127.0.0.1:1'}, {url: 'http://localhost:1'}]\n"
    )
    _, _, error = await command("check", "--config", path.name, cwd=lab.directory)
    gateway = await lab.gateway(options=("--config", str(path)), up=0)
    lines = [line for line in gateway.log_lines() if line["event"] == "configuration_dangerous"]
    assert [f"warning: {line['message']}" for line in lines] == error.splitlines()
    assert [line["level"] for line in lines] == ["warning", "warning"]
    assert lines[1]["message"].startswith("backends[1].url: http://localhost:1 and http://127.0.0.1:1 are most likely")
