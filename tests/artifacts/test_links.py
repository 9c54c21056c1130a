"""Signed links to stored files: of the gateway's own, and of a store's server."""

from __future__ import annotations

import string
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.artifacts import links as module
from gateway.artifacts.links import OWN_PATH, Links, OwnLinks, Verdict
from gateway.artifacts.object_store import ObjectStore
from gateway.files.index import Stored
from gateway.settings.storage import StorageSettings

OWN = OwnLinks(bytes(range(32)))
S3 = {"url": "s3://bucket/pre", "endpoint": "http://127.0.0.1:9", "region": "eu", "allow_http": True}
KEYS = {"access_key_id": "me", "secret_access_key": "secret-of-the-store"}


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.5

    def __call__(self) -> float:
        """The time."""
        return self.now


def made(clock: Clock, **settings: Any) -> Links:
    """Links of a gateway, by default to files in memory."""
    read = StorageSettings(**{"url": "memory:", "links": "signed", "link_lifetime": 100, **settings})
    return Links(read, ObjectStore.of(read), OWN, lambda stored: bool(stored.stored_at), clock)


def parts_of(url: str) -> tuple[str, str, str]:
    """The key, the time and the signature in an own link."""
    found = urlsplit(url)
    query = parse_qs(found.query)
    return found.path.removeprefix(OWN_PATH), query["expires"][0], query["signature"][0]


def test_an_own_link_is_good_until_it_ends() -> None:
    key, expires, signature = parts_of(OWN.url("t/j/n.png", 1000))
    assert (key, expires) == ("t/j/n.png", "1000")
    assert OWN.judge(key, expires, signature, 999.9) is Verdict.GOOD
    assert OWN.judge(key, expires, signature, 1000.0) is Verdict.EXPIRED
    assert OwnLinks(bytes(32)).judge(key, expires, signature, 0.0) is Verdict.FORGED


CHARACTERS = st.sampled_from(string.hexdigits + "/.\n-+_ \ud800é²")


@given(st.integers(0, 2), st.integers(0, 80), CHARACTERS, st.booleans())
def test_a_changed_link_is_forged(part: int, place: int, character: str, is_inserted: bool) -> None:
    parts = list(parts_of(OWN.url("t/j/n.png", 1000)))
    before = parts[part]
    place = min(place, len(before))
    parts[part] = before[:place] + character + before[place + (not is_inserted) :]
    if parts[part] != before:
        assert OWN.judge(*parts, now=0.0) is Verdict.FORGED
    for empty in range(3):
        assert OWN.judge(*("" if n == empty else each for n, each in enumerate(parts)), now=0.0) is Verdict.FORGED


async def test_a_link_is_used_again_until_half_its_lifetime() -> None:
    clock = Clock()
    links = made(clock)
    stored = Stored("t/j/a.png", 1, "b3", 1)
    (first,) = await links.of([stored])
    assert first is not None
    assert first.expires_at == 1_700_000_101
    assert first.under("/comfy") == "/comfy" + first.url
    clock.now += 49
    assert await links.of([stored, stored]) == [first, first]
    clock.now += 2
    (second,) = await links.of([stored])
    assert second is not None
    assert second.expires_at == first.expires_at + 51
    clock.now -= 1_000
    (third,) = await links.of([stored])
    assert third is not None
    assert third.expires_at <= clock.now + 101


async def test_few_links_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KEPT", 3)
    monkeypatch.setattr(module, "AT_ONCE", 2)
    links = made(Clock())
    files = [Stored(f"t/j/{n}", 1, "b3", 1) for n in range(7)]
    found = await links.of([*files, files[0]])
    assert len({each.url for each in found if each is not None}) == 7
    assert found[0] == found[7]
    assert len(links._kept) == 3


@pytest.mark.parametrize(("strips", "keys"), [(False, ["k", "l", ""]), (True, ["shared", "", ""])])
async def test_a_link_leads_to_the_copy_that_may_be_shared(strips: bool, keys: list[str]) -> None:
    links = made(Clock(), strip_metadata=strips)
    # The last one is not in the store yet.
    files = [Stored("k", 1, "b3", 1, "shared"), Stored("l", 1, "b3", 1), Stored("m", 1, "b3", 0, "")]
    found = await links.of(files)
    assert ["" if each is None else parts_of(each.url)[0] for each in found] == keys


async def test_a_store_signs_for_its_public_endpoint() -> None:
    clock = Clock()
    inner, outer = made(clock, **S3, **KEYS), made(clock, **S3, **KEYS, public_endpoint="https://files.example")
    for links, start in ((inner, "http://127.0.0.1:9/"), (outer, "https://files.example/")):
        (link,) = await links.of([Stored("t/j/a.png", 1, "b3", 1)])
        assert link is not None
        assert link.url.startswith(f"{start}bucket/pre/t/j/a.png?")
        assert link.under("/comfy") == link.url
        assert parse_qs(urlsplit(link.url).query)["X-Amz-Expires"] == ["100"]
        assert "secret-of-the-store" not in link.url
        assert link.expires_at == 1_700_000_100
