"""Receivers of attempts: all addresses of a name, backends, and the gateway itself. Most lookups are the tests' own."""

from __future__ import annotations

import asyncio
import threading
from ipaddress import ip_address

import pytest

from gateway.webhooks.addresses import is_allowed
from gateway.webhooks.lookups import Lookups, NoThread
from gateway.webhooks.receivers import MAX_ADDRESSES, NoAddress, Receivers, Refused, is_own, tried
from gateway.webhooks.urls import Rules
from tests.support.lab import until

LAN = Rules.of(allow_http=True, allow_networks=["10.0.0.0/8", "127.0.0.0/8"], ports=[443])
NAMES = {
    "public.example": ("8.8.8.8", "2a00:1450::1"),
    "other.example": ("8.8.8.8",),
    "inner.example": ("10.0.0.7",),
    "mixed.example": ("8.8.8.8", "192.168.0.1"),
    "mapped.example": ("::ffff:169.254.169.254",),
    "scoped.example": ("fe80::1%2",),
    "odd.example": ("8.8.8.8", "?"),
    "empty.example": (),
    "many.example": tuple(f"8.8.8.{last}" for last in range(MAX_ADDRESSES + 1)),
    "gpu.lan": ("10.0.0.7",),
    "localhost": ("127.0.0.1",),
}


async def lookup(host: str, _: str) -> tuple[str, ...]:
    """Answer from the table."""
    if host not in NAMES:
        raise OSError("unknown")
    return NAMES[host]


def receivers(rules: Rules = LAN, backends: tuple[str, ...] = (), listening: tuple[int, ...] = ()) -> Receivers:
    return Receivers(rules, lookup, lambda: backends, lambda: listening)


async def test_all_addresses_of_a_name_are_kept() -> None:
    found = await receivers().find("https://public.example/hook")
    assert [str(each) for each in found.addresses] == ["8.8.8.8", "2a00:1450::1"]
    assert not found.is_inner
    assert (await receivers().find("http://inner.example:9000/")).is_inner


@pytest.mark.parametrize(
    "url",
    [
        "https://mixed.example/",
        "https://mapped.example/",
        "https://scoped.example/",
        "https://192.168.0.1/",
        "https://public.example:8443/",
        "https://8.8.8.8:8443/",
        "ftp://public.example/",
    ],
)
async def test_refused(url: str) -> None:
    """One refused address is enough. A port that inner receivers may have is not one for public ones."""
    with pytest.raises(Refused):
        await receivers().find(url)


@pytest.mark.parametrize("name", ["unknown", "empty", "odd", "many"])
async def test_no_address(name: str) -> None:
    with pytest.raises(NoAddress):
        await receivers().find(f"https://{name}.example/")


BACKENDS = [
    ("http://10.0.0.7:8188", "http://10.0.0.7:8188/prompt", True),
    ("http://10.0.0.7:8188", "http://[::ffff:10.0.0.7]:8188/prompt", True),
    ("http://10.0.0.7:8188", "http://[64:ff9b::10.0.0.7]:8188/prompt", True),
    ("http://10.0.0.7:8188", "http://inner.example:8188/prompt", True),
    ("http://[::ffff:10.0.0.7]:8188", "http://10.0.0.7:8188/prompt", True),
    ("http://gpu.lan:8188", "http://10.0.0.7:8188/prompt", True),
    ("http://gpu.lan:8188", "http://gpu.lan.:8188/prompt", True),
    ("http://127.0.0.1:8188", "http://127.0.0.9:8188/prompt", True),
    ("http://localhost:8188", "http://127.0.0.1:8188/prompt", True),
    ("http://unknown.lan:8188", "http://10.0.0.8:8188/prompt", True),
    ("https://10.0.0.7", "https://inner.example/prompt", True),
    ("https://gpu.lan", "https://inner.example/prompt", True),
    ("http://10.0.0.7:8188", "http://10.0.0.7:9000/hook", False),
    ("http://10.0.0.7:8188", "http://10.0.0.8:8188/hook", False),
    ("http://unknown.lan:8188", "http://10.0.0.8:9000/hook", False),
    # Behind a shared public address the certificate tells hosts apart.
    ("https://public.example", "https://other.example/hook", False),
    ("https://public.example", "https://public.example/prompt", True),
    ("https://8.8.8.8", "https://other.example/prompt", True),
    ("http://public.example:443", "https://other.example/prompt", True),
]


async def test_no_backend_is_a_receiver() -> None:
    """Nor if its network is allowed."""
    for backend, url, is_refused in BACKENDS:
        try:
            await receivers(backends=("http://10.9.9.9:1", backend)).find(url)
        except Refused:
            assert is_refused, (backend, url)
        else:
            assert not is_refused, (backend, url)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "[::ffff:127.0.0.1]", "localhost"])
async def test_the_gateway_is_no_receiver(host: str) -> None:
    with pytest.raises(Refused, match="own"):
        await receivers(listening=(8288,)).find(f"http://{host}:8288/prompt")
    assert (await receivers(listening=(8288,)).find(f"http://{host}:8289/")).is_inner


def test_own_addresses() -> None:
    assert is_own(ip_address("127.0.0.1"))
    assert not is_own(ip_address("192.0.2.1"))


def test_few_addresses_of_each_family_are_tried() -> None:
    many = [ip_address(text) for text in ("2::1", "2::2", "2::3", "8.8.8.1", "8.8.8.2", "8.8.8.3")]
    assert [str(each) for each in tried(many)] == ["2::1", "2::2", "8.8.8.1", "8.8.8.2"]


@pytest.mark.parametrize("text", ["2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.1", "127.0.1", "0"])
async def test_the_system_reads_numbers_as_addresses(text: str) -> None:
    """So the result decides. The URL's check has refused such a host before."""
    found = await Lookups(1, 1)(text, "t")
    assert found
    assert not any(is_allowed(ip_address(each)) for each in found)


@pytest.mark.parametrize("text", ["a" * 64, "ä"])
async def test_a_name_that_can_not_be_one(text: str) -> None:
    with pytest.raises(OSError):
        await asyncio.wait_for(Lookups(1, 1)(text, "t"), 60)


async def test_a_lookup_that_nobody_waits_for_frees_its_thread() -> None:
    lookups = Lookups(1, 1)
    first = asyncio.create_task(lookups("localhost", "t"))
    await asyncio.sleep(0)
    first.cancel()
    found = await until(lambda: _found(lookups, "t"), what="a thread")
    assert found == ("127.0.0.1",)
    assert first.cancelled()


async def _found(lookups: Lookups, tenant: str) -> tuple[str, ...]:
    try:
        return await lookups("127.0.0.1", tenant)
    except NoThread:
        return ()


async def test_a_tenant_whose_names_hang_takes_its_share_of_the_threads_alone() -> None:
    """Also after its attempts are over, because a thread that asks can't be stopped."""
    answers = threading.Event()

    def hang(host: str) -> tuple[str, ...]:
        if host == "hangs.example":
            answers.wait()
        return ("8.8.8.8",)

    lookups = Lookups(8, 3, hang)
    tenants = ["mallory"] * 3 + ["trudy"] * 2 + ["other"]
    hanging = [asyncio.create_task(lookups("hangs.example", tenant)) for tenant in tenants]
    await asyncio.sleep(0)
    for each in hanging:
        each.cancel()
    # Half of all are taken: each tenant may have one, and the 5th and the 6th were taken as such.
    assert [each.done() for each in hanging].count(True) == 1
    for tenant in ("mallory", "trudy", "other"):
        with pytest.raises(NoThread):
            await lookups("fast.example", tenant)
    assert await lookups("fast.example", "anna") == ("8.8.8.8",)
    more = [asyncio.create_task(lookups("hangs.example", tenant)) for tenant in ("a", "b", "c")]
    await asyncio.sleep(0)
    # All are taken.
    with pytest.raises(NoThread):
        await lookups("fast.example", "anna")
    answers.set()
    await asyncio.gather(*more)
    assert await until(lambda: _found(lookups, "mallory"), what="a thread")
