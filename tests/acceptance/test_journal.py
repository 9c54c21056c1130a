"""The journal of a gateway as a process: what it keeps, and what it says of a file that is not as it should be."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import random
import sqlite3
import sys
import zlib
from pathlib import Path

from gateway.store.sqlite import MAX_LOG_BYTES
from tests.support import disk
from tests.support.comfy_client import Comfy
from tests.support.commands import command
from tests.support.lab import Lab, until
from tests.support.workflows import slow


async def test_old_history_goes(lab: Lab) -> None:
    """From what clients read and from the file; what such a job made can still be viewed."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, store__retention__max_age=2)
    comfy = Comfy(lab.http, gateway.url)
    prompt_id = await comfy.prompt(slow(steps=1))
    image = comfy.images(await comfy.entry(prompt_id))[0]

    async def gone() -> bool:
        return await comfy.get("/history") == {}

    await until(gone, what="the entry is too old")
    await comfy.view(image)
    journal = sqlite3.connect(lab.directory / "data" / "gateway.sqlite3")

    async def gone_there() -> bool:
        return bool(journal.execute("SELECT count(*) FROM history").fetchone() == (0,))

    await until(gone_there, what="the journal's, too")
    journal.close()


async def test_a_smaller_retention_tells_what_it_deletes(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    await comfy.entry(await comfy.prompt(slow(steps=1)))
    await gateway.stop()
    columns = "tenant, {}, backend, upstream_id, number, outcome, digest, node_errors, summary, entry"
    with contextlib.closing(sqlite3.connect(gateway.data_dir / "gateway.sqlite3")) as journal, journal:
        rows = "SELECT " + columns.format("prompt_id || '-' || value") + " FROM history, json_each(?)"
        put = f"INSERT INTO history ({columns.format('prompt_id')}) {rows}"
        journal.execute(put, (json.dumps(list(range(150))),))
    gateway = await lab.gateway(simulator, store__retention__max_items=50)

    async def told() -> list[tuple[str, str, int, str]]:
        lines = [line for line in gateway.log_lines() if line["event"].startswith("history_expir")]
        found = [(line["event"], line["level"], line["entries"], line["setting"]) for line in lines]
        return found if len(found) > 1 else []

    setting = "store.retention.max_items"
    assert await until(told, what="a line") == [
        ("history_expiring", "warning", 101, setting),
        ("history_expired", "info", 101, setting),
    ]


async def test_large_prompts_leave_no_large_files(lab: Lab) -> None:
    """Past `history.max_bytes` the oldest go, what comes later takes their room, and the log is cut again."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, history__max_bytes=8_000_000)
    comfy = Comfy(lab.http, gateway.url)
    file, log = (lab.directory / "data" / f"gateway.sqlite3{suffix}" for suffix in ("", "-wal"))
    sizes = []
    for n in range(3):
        noise = base64.b64encode(random.Random(n).randbytes(5_000_000)).decode()
        body = json.dumps({"prompt": slow(n, steps=1), "extra_data": {"extra_pnginfo": {"workflow": {"x": noise}}}})
        headers = {"Content-Type": "application/json"}
        async with lab.http.post(f"{gateway.url}/prompt", data=io.BytesIO(body.encode()), headers=headers) as answer:
            prompt_id = (await answer.json())["prompt_id"]
        await comfy.entry(prompt_id)
        sizes.append(file.stat().st_size)
    # Each is 7 MB as an open job and 5 MB as an entry, and an entry is there until the next one has come.
    assert list(await comfy.get("/history")) == [prompt_id]
    assert max(sizes) < 2 * 5_000_000 + 2 * 7_000_000

    async def is_cut() -> bool:
        await comfy.entry(await comfy.prompt(slow(9, steps=1)))
        return log.stat().st_size <= MAX_LOG_BYTES

    await until(is_cut, what="the log is cut")


async def run(*arguments: str) -> tuple[int, str, str]:
    """A command to its end: exit code, standard output, standard error."""
    return await command(*arguments, cwd=Path.cwd())


async def serve(lab: Lab) -> str:
    """Start a gateway that must refuse to; the one sentence that it says."""
    data = str(lab.directory / "data")
    code, out, error = await run("serve", "--backend", "http://127.0.0.1:1", "--port", "0", "--data-dir", data)
    assert (code, out) == (1, "")
    (sentence,) = [line for line in error.splitlines() if not line.startswith("{")]
    return sentence


async def check(data: Path) -> tuple[int, str]:
    """`check` of a configuration with this data directory: exit code, and what it says of it."""
    environment = {"COMFYUI_GATEWAY_DATA_DIR": str(data), "COMFYUI_GATEWAY_BACKENDS": "http://127.0.0.1:1"}
    before = look(data)
    code, _, error = await command("check", cwd=Path.cwd(), environment=environment)
    assert look(data) == before, "looking changes nothing"
    return code, error.strip()


def look(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


async def test_a_damaged_journal_is_said_so_and_recovered(lab: Lab) -> None:
    """At the start, in a sentence; afterwards the gateway goes on with what could be saved."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    ids = [await comfy.prompt(slow(n, steps=1)) for n in range(30)]
    for prompt_id in ids:
        await comfy.entry(prompt_id)
    await gateway.stop()
    path = lab.directory / "data" / "gateway.sqlite3"
    pages = path.read_bytes()
    page = max(n for n in range(len(pages) // 4096) if pages[n * 4096] == 13 and b"success" in pages[n * 4096 :][:4096])
    with path.open("r+b") as file:
        file.seek(page * 4096)
        file.write(b"\xff" * 4096)
    sentence = await serve(lab)
    assert "damaged" in sentence
    assert "journal recover" in sentence
    data = str(path.parent)
    assert await check(path.parent) == (1, sentence)
    assert (await run("journal", "check", "--data-dir", data))[0] == 1
    code, out, _ = await run("journal", "recover", "--data-dir", data)
    assert code == 0
    assert "others can't be read" in out
    assert (await run("journal", "check", "--data-dir", data))[0] == 0
    again = await lab.gateway(simulator)
    comfy = Comfy(lab.http, again.url)
    history = await comfy.get("/history")
    assert 0 < len(history) < 30
    assert set(history) < set(ids)
    await comfy.entry(await comfy.prompt(slow(40)))


async def test_a_bad_entry_costs_itself_alone(lab: Lab) -> None:
    """The gateway answers all others, `check` names the bad ones, and `recover` leaves just those out."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    good, noise, torn, summary, column = [await comfy.prompt(slow(n, steps=1)) for n in range(5)]
    for prompt_id in (good, noise, torn, summary, column):
        await comfy.entry(prompt_id)
    await gateway.stop()
    directory = lab.directory / "data"
    assert (await run("journal", "check", "--data-dir", str(directory)))[0] == 0
    with contextlib.closing(sqlite3.connect(directory / "gateway.sqlite3")) as journal, journal:
        journal.execute("UPDATE history SET entry=? WHERE prompt_id=?", (b"noise", noise))
        journal.execute("UPDATE history SET entry=? WHERE prompt_id=?", (zlib.compress(b'{"torn": }'), torn))
        journal.execute("UPDATE history SET summary=? WHERE prompt_id=?", (b"[]", summary))
        journal.execute("UPDATE history SET number=? WHERE prompt_id=?", ("no number", column))
    again = await lab.gateway(simulator)
    comfy = Comfy(lab.http, again.url)
    history = await comfy.get("/history")
    assert list(history) == [good, noise, torn, summary]
    told = {prompt_id: entry["status"]["status_str"] for prompt_id, entry in history.items()}
    assert told == {good: "success", noise: "error", torn: "error", summary: "success"}
    ((_, start), (kind, event)) = (await comfy.get(f"/history/{noise}"))[noise]["status"]["messages"]
    assert (start["prompt_id"], kind, event["exception_type"]) == (noise, "execution_error", "HistoryEntryDamaged")
    assert "journal recover" in event["exception_message"]
    jobs = {job["id"]: job["status"] for job in (await comfy.get("/api/jobs"))["jobs"]}
    assert jobs == dict.fromkeys((good, noise, torn, summary), "completed")
    assert (await comfy.get(f"/api/jobs/{noise}"))["status"] == "failed"
    await again.stop()
    code, out, error = await run("journal", "check", "--data-dir", str(directory))
    assert code == 1
    assert [prompt_id in out for prompt_id in (good, noise, torn, summary, column)] == [False, True, True, True, True]
    assert "journal recover" in error
    code, out, _ = await run("journal", "recover", "--data-dir", str(directory))
    assert (code, "history: 1 saved, 4 damaged in themselves and left out" in out) == (0, True)
    assert (await run("journal", "check", "--data-dir", str(directory)))[0] == 0


async def test_a_bad_open_job_is_judged_alike_by_all(lab: Lab) -> None:
    """A start that refuses it, `check` that names it, `recover` that leaves it out, and a start that then works."""
    nobody = "http://127.0.0.1:1"
    gateway = await lab.gateway(nobody, up=0)
    await Comfy(lab.http, gateway.url).prompt(slow(steps=1))
    await gateway.stop()
    directory = lab.directory / "data"
    with contextlib.closing(sqlite3.connect(directory / "gateway.sqlite3")) as journal, journal:
        # It is JSON, and no prompt.
        journal.execute("UPDATE jobs SET submission=?", (b'{"prompt": {}}',))
    sentence = await serve(lab)
    assert "journal recover" in sentence
    assert await check(directory) == (1, sentence)
    code, out, _ = await run("journal", "check", "--data-dir", str(directory))
    assert (code, "the open job" in out) == (1, True)
    code, out, _ = await run("journal", "recover", "--data-dir", str(directory))
    assert (code, "jobs: 0 saved, 1 damaged" in out) == (0, True)
    await lab.gateway(nobody, up=0)


async def test_a_journal_that_is_none_is_said_so(lab: Lab) -> None:
    path = lab.directory / "data" / "gateway.sqlite3"
    path.parent.mkdir(mode=0o700)
    path.write_bytes(b"these are not the bytes of a database" * 1000)
    assert "damaged" in await serve(lab)
    code, _, error = await run("journal", "recover", "--data-dir", str(path.parent))
    assert (code, len(error.splitlines())) == (1, 1)
    assert "nothing in it can be read" in error


async def test_an_open_job_that_is_damaged_is_said_so(lab: Lab) -> None:
    """It is not passed over in silence: it was accepted."""
    gateway = await lab.gateway("http://127.0.0.1:1", up=0)
    await Comfy(lab.http, gateway.url).prompt(slow())
    await gateway.stop()
    connection = sqlite3.connect(lab.directory / "data" / "gateway.sqlite3")
    connection.execute("UPDATE jobs SET submission = x'00ff'")
    connection.commit()
    connection.close()
    assert "open job" in await serve(lab)


async def test_a_journal_of_a_newer_gateway_is_refused(lab: Lab) -> None:
    (lab.directory / "data").mkdir(mode=0o700)
    connection = sqlite3.connect(lab.directory / "data" / "gateway.sqlite3")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    sentence = await serve(lab)
    assert "schema version 99" in sentence
    assert await check(lab.directory / "data") == (1, sentence)
    for verb in ("check", "recover"):
        assert await run("journal", verb, "--data-dir", str(lab.directory / "data")) == (1, "", f"{sentence}\n")


async def test_two_gateways_at_once_one_is_refused(lab: Lab) -> None:
    """Started together on one directory: whichever comes first has it, and is not disturbed."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    for sentence in await asyncio.gather(*(serve(lab) for _ in range(3))):
        assert "in use by another gateway" in sentence
    comfy = Comfy(lab.http, gateway.url)
    await comfy.entry(await comfy.prompt(slow(steps=1)))
    await gateway.kill()
    again = await lab.gateway(simulator)
    assert len(await Comfy(lab.http, again.url).get("/history")) == 1


async def test_a_directory_that_takes_no_file_is_said_so(lab: Lab) -> None:
    """The start on a disk that is full or read-only: a sentence, and no traceback."""
    (lab.directory / "data").mkdir(mode=0o700)
    data = str(lab.directory / "data")
    command = [sys.executable, "-m", "gateway", "serve", "--backend", "http://127.0.0.1:1", "--port", "0"]
    process = await asyncio.create_subprocess_exec(
        *command,
        "--data-dir",
        data,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=lambda: disk.fill(0, 100),
    )
    _, error = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    (sentence,) = [line for line in error.decode().splitlines() if not line.startswith("{")]
    assert "can't be opened" in sentence
