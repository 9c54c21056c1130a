"""Garbage that only a collection finds: requests leave none, and what there is of it is collected in short pieces."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.app import Gateway
from gateway.settings import BackendSettings, ServerSettings, Settings
from gateway.telemetry.garbage_collection import collect
from tests.support.lab import Lab, until

TIMES = 30
PROMPT = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
}


class Knot:
    """An object that holds itself."""

    def __init__(self) -> None:
        self.own = self


@pytest.fixture
def collections_by_hand() -> Iterator[None]:
    """Have no collection but those that a test asks for."""
    gc.collect()
    gc.disable()
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.unfreeze()
    gc.enable()


def found() -> Counter[str]:
    """Return the types of the gateway's objects, and of its connections, that only a collection has found."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    types = Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.garbage)
    gc.garbage.clear()
    return Counter({name: count for name, count in types.items() if name.startswith(("gateway.", "aiohttp.web"))})


@pytest.mark.filterwarnings("ignore:It is recommended to use web.RequestKey")
@pytest.mark.usefixtures("collections_by_hand")
async def test_no_request_leaves_garbage(lab: Lab, tmp_path: Path) -> None:
    """Or else it would stay as long as a connection was open before it became that."""
    simulator = await lab.simulator()
    backends = [BackendSettings(url=simulator.url, name="b1")]
    gateway = Gateway(Settings(server=ServerSettings(port=0), data_dir=tmp_path / "data", backends=backends))
    await gateway.start()
    try:
        url = gateway.url
        async with aiohttp.ClientSession() as http:

            async def ask(method: str, path: str, **body: Any) -> None:
                async with http.request(method, url + path, **body) as answer:
                    await answer.read()

            async def upload() -> None:
                form = aiohttp.FormData()
                form.add_field("image", b"x", filename="a.png")
                await ask("POST", "/upload/image", data=form)

            async def listen() -> None:
                async with http.ws_connect(f"{url}/ws?clientId=c") as socket:
                    await socket.receive()

            async def is_idle() -> bool:
                async with http.get(f"{url}/prompt") as answer:
                    return not (await answer.json())["exec_info"]["queue_remaining"]

            ways: list[Callable[[], Awaitable[None]]] = [
                listen,
                upload,
                lambda: ask("GET", "/queue"),
                lambda: ask("GET", "/history"),
                lambda: ask("GET", "/object_info"),
                lambda: ask("GET", "/view?filename=none.png"),
                lambda: ask("GET", "/"),
                lambda: ask("POST", "/prompt", data=b"{"),
                lambda: ask("POST", "/prompt", json={"prompt": PROMPT, "client_id": "c"}),
            ]
            for each in ways:
                await each()
            await until(is_idle)
            found()
            for _ in range(TIMES):
                for each in ways:
                    await each()
            await until(is_idle)
            left = found()
            assert not {name: count for name, count in left.items() if count >= TIMES // 2}
    finally:
        await gateway.close()


@pytest.mark.usefixtures("collections_by_hand")
def test_old_garbage_is_collected_while_there_are_few_objects() -> None:
    knot = Knot()
    gone = weakref.ref(knot)
    for generation in (0, 1):
        gc.collect(generation)
    del knot
    assert gone() is not None
    assert collect(max_old=10**9) > 0
    assert gone() is None


@pytest.mark.usefixtures("collections_by_hand")
def test_objects_that_are_many_are_looked_at_no_more() -> None:
    gc.freeze()
    kept = [[None] for _ in range(2_000)]
    collect(max_old=1_000)
    assert len(gc.get_objects()) < 1_000
    knot = Knot()
    gone = weakref.ref(knot)
    del knot
    assert collect(max_old=1_000) > 0
    assert gone() is None
    more = [[None] for _ in range(2_000)]
    for _ in range(3):
        gc.collect(1)
    assert collect(max_older=2) == 0, "they are too many to be looked at"
    assert len(gc.get_objects()) < 1_000
    assert len(kept) == len(more)
