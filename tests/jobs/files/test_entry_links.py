"""Links beside the outputs of history entries: to a tenant's own stored files alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.comfy.file_refs import FileRef
from gateway.files.index import Stored
from gateway.jobs.files import entry_links as module
from gateway.jobs.files.entry_links import Answer, EntryLinks
from gateway.store.protocol import HistoryRecord
from tests.support.stored_links import indexed, links, output


def ended(tenant: str = "anna", prompt_id: str = "p", upstream_id: str = "u") -> HistoryRecord:
    """An ended job."""
    return HistoryRecord(tenant, prompt_id, "b1", upstream_id, 1.0, "success", None, None, b"{}")


def entry(*names: str, **more: Any) -> bytes:
    """An entry with these images."""
    images = [{"filename": name, "subfolder": "", "type": "output"} for name in names]
    return json.dumps({"outputs": {"9": {"images": images}, "10": {"images": images[:1]}}, **more}).encode()


async def unread(tenant: str, entry: bytes, maximum: int) -> tuple[FileRef, ...] | None:
    """Read no long entry."""
    return None


def told(member: bytes) -> Any:
    """The files that a member of an entry tells."""
    return json.loads(b"{" + member[1:] + b"}")["gateway_files"]


async def test_each_stored_file_of_the_tenant_has_a_link() -> None:
    files: dict[str, dict[str, Stored | None]] = {
        "anna": {
            "a.png": Stored("anna/j/a", 5, "b3a", 1),
            "lost.png": Stored("anna/j/lost", 6, "b3l", 1),
            "c.png": None,
        },
        "ben": {"a.png": Stored("ben/j/a", 7, "b3b", 1), "d.png": Stored("ben/j/d", 8, "b3d", 1)},
    }
    made = EntryLinks(indexed(files), links(), unread)
    annas, bens = await made.members(
        [(ended(), entry("a.png", "lost.png", "c.png", "d.png", "e.png")), (ended("ben"), entry("a.png"))],
        Answer("/comfy"),
    )
    assert [(each["filename"], each["size"], each["blake3"]) for each in told(annas)] == [
        ("a.png", 5, "b3a"),
        ("lost.png", 6, "b3l"),
    ]
    assert [each["url"].partition("?")[0] for each in told(annas)] == [
        "/comfy/gateway/stored/anna/j/a",
        "/comfy/gateway/stored/anna/j/lost",
    ]
    assert [each["url"].partition("?")[0] for each in told(bens)] == ["/comfy/gateway/stored/ben/j/a"]
    assert set(told(bens)[0]) == {"filename", "subfolder", "type", "size", "blake3", "url", "expires_at"}
    first, none, foreign = await made.links_to("anna", [output("a.png"), output("c.png"), output("d.png")])
    assert first is not None
    assert "/comfy" + first.url == told(annas)[0]["url"]
    assert (none, foreign) == (None, None)


async def test_links_to_copies_without_metadata_say_so() -> None:
    files = {"anna": {"a.png": Stored("k", 5, "b3", 1, "s"), "a.mp4": Stored("l", 5, "b3", 1)}}
    made = EntryLinks(indexed(files), links(strip_metadata=True), unread)
    (found,) = await made.members([(ended(), entry("a.png", "a.mp4"))], Answer())
    shown = {each["filename"]: each for each in told(found)}
    assert shown["a.png"]["url"].startswith("/gateway/stored/s?")
    assert shown["a.mp4"]["url"] is None
    assert shown["a.mp4"]["expires_at"] is None
    assert all(each["stripped"] for each in shown.values())


async def test_an_entry_is_parsed_once_for_all_its_readers() -> None:
    """A job of the same id that ran later is another one."""
    asked = []

    async def files_of(tenant: str, entry: bytes, maximum: int) -> tuple[FileRef, ...] | None:
        asked.append(entry)
        return (output("a.png"),) if len(asked) > 1 else None

    stored = Stored("k", 5, "b3", 1)
    made = EntryLinks(indexed({"anna": {"a.png": stored, "b.png": stored}}), links(), files_of)
    long = entry("a.png", padding="x" * module.MAX_AT_ONCE)
    # While the entry can't be read, its answer says nothing of files.
    assert await made.members([(ended(), long)], Answer()) == [b""]
    for _ in range(3):
        (found,) = await made.members([(ended(), long)], Answer())
        assert [each["filename"] for each in told(found)] == ["a.png"]
    assert len(asked) == 2
    (found,) = await made.members([(ended(upstream_id="v"), entry("b.png"))], Answer())
    assert [each["filename"] for each in told(found)] == ["b.png"]


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINKED", 3)
    monkeypatch.setattr(module, "MAX_REMEMBERED", 10)
    made = EntryLinks(indexed({}), links(), unread)
    many = entry(*(f"{n}.png" for n in range(9)))
    assert (
        await made.members([(ended(prompt_id=str(n)), many) for n in range(5)], Answer())
        == [b',"gateway_files":[]'] * 5
    )
    assert len(made._known) == 2
    assert made._remembered == sum(len(refs) + 1 for _, refs in made._known.values())
    assert await made.members([(ended(), b'{"outputs":[]}'), (ended(prompt_id="q"), b"{}")], Answer())


async def test_an_answer_holds_so_many_links_over_all_its_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_IN_ANSWER", 3)
    monkeypatch.setattr(module, "WORK_AT_ONCE", 1)
    names = [f"{n}.png" for n in range(4)]
    made = EntryLinks(indexed({"anna": {name: Stored(name, 5, "b3", 1) for name in names}}), links(), unread)
    answer = Answer()
    found = await made.members(
        [(ended(prompt_id="p"), entry(*names[:2])), (ended(prompt_id="q"), entry(*names))], answer
    )
    found += await made.members([(ended(prompt_id="r"), entry(*names))], answer)
    linked = [[each["url"] is not None for each in told(member)] for member in found]
    assert linked == [[True, True], [True, False, False, False], [False] * 4]
