"""Long-lived work goes on, whatever it raises: each loop of a gateway, and the store's thread."""

from __future__ import annotations

import ast
import asyncio
import functools
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from pathlib import Path

import pytest
import pytest_asyncio
import trustme

import gateway
from gateway.app import Gateway
from gateway.settings import BackendSettings, ServerSettings, ServerTlsSettings, Settings
from gateway.settings.healing import RestartSettings, VramGuardSettings
from gateway.settings.storage import StorageRetention, StorageSettings
from gateway.store.protocol import TimeMark
from gateway.store.sqlite import SqliteStore
from gateway.telemetry import tasks
from gateway.telemetry.tasks import Loop, Tasks, in_turns, together
from tests.support.lab import Lab, until

SOURCE = Path(gateway.__file__).parent
# They end with what they serve: the demo's process, a client's socket. A reader ends with its document.
ENDING = {
    ("artifacts/strip.py", "_scan"),
    ("cli/demo.py", "_draw"),
    ("cli/demo.py", "_backends_up"),
    ("sessions/client_socket.py", "_write"),
}


class Odd(Exception):
    """Nobody expects it."""


async def raise_odd() -> None:
    """Do one round that fails."""
    raise Odd


@functools.cache
def nodes() -> list[tuple[str, ast.AST]]:
    """All calls and coroutines of the gateway, save the simulator's, with their files."""
    found: list[tuple[str, ast.AST]] = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        text = path.read_text()
        if not name.startswith("simulator/") and any(
            word in text for word in ("while True", "while 1", "Thread(", ".repeat(")
        ):
            found += [(name, node) for node in ast.walk(ast.parse(text))]
    return [(name, node) for name, node in found if isinstance(node, (ast.Call, ast.AsyncFunctionDef))]


def call_sites(method: str) -> list[str]:
    """Return the file of each call of a method of this name."""
    called = [(name, node.func) for name, node in nodes() if isinstance(node, ast.Call)]
    return [name for name, function in called if isinstance(function, ast.Attribute) and function.attr == method]


def test_nothing_else_runs_for_ever() -> None:
    """A coroutine that never ends by itself would end with its first unexpected error."""
    endless = set()
    for name, function in nodes():
        if not isinstance(function, ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.While) and isinstance(node.test, ast.Constant) and node.test.value:
                endless.add((name, function.name))
    endless = {(name, function) for name, function in endless if name != "comfy/json_stream.py"}
    assert endless - ENDING == {("telemetry/tasks.py", "run")}
    assert call_sites("Thread") == ["store/sqlite.py", "webhooks/lookups.py"]


@pytest_asyncio.fixture
async def started(lab: Lab, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway in this process, with all loops that there are."""
    simulator = await lab.simulator()
    leaf = trustme.CA().issue_cert("127.0.0.1")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    leaf.cert_chain_pems[0].write_to_path(certificate)
    leaf.private_key_pem.write_to_path(key)
    server = ServerSettings(port=0, tls=ServerTlsSettings(certificate=certificate, key=key))
    backends = (BackendSettings(url=simulator.url, name="b1", restart=RestartSettings(url=simulator.url)),)
    guard = VramGuardSettings(enabled=True)
    storage = StorageSettings(url="memory:", retention=StorageRetention(max_age=86_400.0))
    folder = tmp_path / "data"
    made = Gateway(Settings(server=server, data_dir=folder, backends=backends, vram_guard=guard, storage=storage))
    await made.start()
    yield made
    await made.close()


async def test_each_loop_goes_on(started: Gateway) -> None:
    loops = list(tasks.running)
    assert len({loop.name.removesuffix(":b1") for loop in loops}) == len(loops) == len(call_sites("repeat"))
    await asyncio.gather(*(fails_and_goes_on(loop, started) for loop in loops))
    backend = started.parts.fleet.backends["b1"]
    await until(lambda: holds(lambda: backend.eligible), what="the backend takes work again")


async def test_a_gateway_with_tls_tells_the_end_of_its_certificate(started: Gateway) -> None:
    end = started.parts.metrics.registry.get_sample_value("comfyui_gateway_certificate_expiry_timestamp_seconds")
    assert end is not None
    assert end > time.time()


async def fails_and_goes_on(loop: Loop, started: Gateway) -> None:
    """Have the next round of a loop fail, and see that another one follows."""
    registry, proper = started.parts.metrics.registry, loop.work

    def failures() -> float | None:
        return registry.get_sample_value("comfyui_gateway_task_failures_total", {"task": loop.name})

    assert failures() is None
    loop.work = raise_odd
    await next_round(loop, started)
    await until(lambda: holds(lambda: failures() == 1), what=f"{loop.name} fails")
    assert registry.get_sample_value("comfyui_gateway_task_restarts_total", {"task": loop.name}) == 1
    loop.work, before = proper, loop.rounds
    loop.wake()
    if loop.name.startswith("fleet:socket"):
        backend = started.parts.fleet.backends["b1"]
        await until(lambda: holds(lambda: backend.connected), what="the socket is back")
    else:
        await until(lambda: holds(lambda: loop.rounds > before), what=f"{loop.name} goes on")


async def next_round(loop: Loop, started: Gateway) -> None:
    """Have the round end that is under way, and the next one begin."""
    if loop.name.startswith("fleet:socket"):
        fleet = started.parts.fleet
        await until(lambda: holds(lambda: fleet.backends["b1"].connected), what="the socket is up")
        fleet._cut(fleet.backends["b1"])
        await until(lambda: holds(lambda: not fleet.backends["b1"].connected), what="the socket is down")
    loop.wake()


async def holds(look: Callable[[], bool]) -> bool:
    """Return what `look` does, for `until`."""
    return look()


async def test_a_loop_ends_only_if_it_is_cancelled_itself() -> None:
    """It may wait for another task that somebody cancels."""
    owner, rounds = Tasks("test"), 0
    third = asyncio.Event()

    async def work() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            other = asyncio.get_running_loop().create_task(asyncio.Event().wait())
            other.cancel()
            await other
        if rounds == 2:
            raise Odd
        third.set()
        loop.work = never

    async def never() -> None:
        await asyncio.Event().wait()

    loop = owner.repeat(work, "work", 0.0)
    for _ in range(100):
        loop.wake()
        await asyncio.sleep(0)
    assert third.is_set()
    await owner.close()
    assert rounds == 3
    assert loop not in tasks.running


async def test_the_stores_thread_goes_on(tmp_path: Path) -> None:
    raised: list[float] = []

    def observe(seconds: float) -> None:
        raised.append(seconds)
        if len(raised) == 1:
            raise Odd

    store = SqliteStore(tmp_path, "NORMAL", observe)
    await store.open()
    for _ in range(2):
        write: Awaitable[None] = store.try_write([TimeMark(1)])
        await write
    await store.close()
    assert len(raised) > 1


async def test_long_work_is_done_in_turns() -> None:
    others = asyncio.Event()
    asyncio.get_running_loop().call_soon(others.set)
    ended = []

    def steps(count: float) -> Generator[None, None, str]:
        try:
            while not others.is_set() and count:
                count -= 1
                yield
            return "done" if others.is_set() else "alone"
        finally:
            ended.append(count)

    assert await in_turns(steps(0)) == "alone"
    assert await in_turns(steps(math.inf)) == "done"
    others.clear()
    task = asyncio.create_task(in_turns(steps(math.inf)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [0, math.inf, math.inf]


async def echo(value: int) -> int:
    """Return a value in a later turn."""
    await asyncio.sleep(0)
    return value


async def test_work_that_runs_together() -> None:
    """Results come in order; the first failure cancels the others, and is raised alone."""
    assert await together(echo(n) for n in range(3)) == [0, 1, 2]
    assert await together(echo(n) for n in range(0)) == []
    with pytest.raises(Odd):
        await together([asyncio.Event().wait(), raise_odd()])


async def test_a_failure_does_not_hide_a_cancellation() -> None:
    """Of its caller, when both come in the same turn: the caller would go on for ever."""
    failing = asyncio.Event()

    async def fail() -> None:
        await failing.wait()
        raise Odd

    async def retry() -> None:
        try:
            await together([fail(), asyncio.Event().wait()])
        except Odd:
            await asyncio.Event().wait()

    for failure_is_first in (True, False):
        failing.clear()
        task = asyncio.create_task(retry())
        # Two turns: the task begins, and then its own two.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if failure_is_first:
            failing.set()
            await asyncio.sleep(0)
        task.cancel()
        failing.set()
        done, _ = await asyncio.wait([task], timeout=5)
        assert done
        assert task.cancelled()


async def test_a_task_that_loses_a_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "CLEANUP_SECONDS", 0.05)
    lost = 0

    async def lose_two() -> None:
        nonlocal lost
        while lost < 2:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                lost += 1
        await asyncio.Event().wait()

    owner = Tasks("test")
    task = owner.start(lose_two(), "work")
    await asyncio.sleep(0)
    await owner.close()
    assert task.cancelled()
    assert lost == 2


def test_work_runs_together_in_one_way() -> None:
    """No other TaskGroup, and no gather that raises."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if name.startswith("simulator/") or not any(word in path.read_text() for word in ("TaskGroup(", "gather(")):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                returns = [word for word in node.keywords if word.arg == "return_exceptions"]
                if node.func.attr == "TaskGroup" or (node.func.attr == "gather" and not returns):
                    found.append((name, node.func.attr))
    assert found == [("cli/demo.py", "gather")]
