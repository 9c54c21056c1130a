"""The table of addresses to which a webhook may be delivered, and the IPv6 addresses that hold others."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address, ip_network

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway.webhooks.addresses import _SPECIAL, Reach, destinations, is_allowed, parsed, reach

REFUSED = """
    0.0.0.0 0.0.0.1 0.255.255.255 10.0.0.0 10.255.255.255 100.64.0.1 100.127.255.255 100.100.100.200 127.0.0.1
    127.0.0.2 127.255.255.255 168.63.129.16 169.254.0.1 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.8
    192.0.0.192 192.0.2.1 192.88.99.1 192.168.0.1 192.168.255.255 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1
    224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
    :: ::1 ::2 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:0.0.0.0 ::ffff:169.254.169.254
    ::ffff:0:127.0.0.1 ::ffff:0:8.8.8.8 64:ff9b::127.0.0.1 64:ff9b::10.0.0.1 64:ff9b::169.254.169.254
    64:ff9b:1::127.0.0.1 64:ff9b:1::8.8.8.8 64:ff9b:1:7f00:0:100:: 64:ff9b:1:0:7f:0:100:: 64:ff9b:1:8:8:8:8::
    100::1 2001::1 2001:0:7f00:1:: 2001:0:808:808::f7f7:f7f7 2001:3::1 2001:10::1 2001:20::1 2001:1ff:ffff::1
    2001:db8::1 2002:7f00:1:: 2002:a00:1:: 2002:a9fe:a9fe:: 2002:808:808:: 3fff::1 3fff:fff::1 4000::1 5f00::1
    2a00:1450::5efe:7f00:1 2a00:1450::200:5efe:a00:1 2a00:1450::100:5efe:a9fe:a9fe
    fc00::1 fd00:ec2::254 fd20:ce::254 fd00:42::42 fe80::1 fe80::1%eth0 febf::1 fec0::1 feff::1 ff02::1 ff0e::1
    ::1%1 2a00:1450::1%eth0
""".split()
PUBLIC = """
    1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.1 168.63.129.15
    169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 192.0.1.0 192.0.3.0 192.88.98.255 192.167.255.255 192.169.0.0
    198.17.255.255 198.20.0.0 223.255.255.255
    ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2001:200::1 2001:4860:4860::8888 2003::1 2606:4700::1111 2a00:1450:4001::5efe
    2a00:1450::5efe:808:808 3ffe::1
""".split()
# Another spelling of 127.0.0.1 is no address here, and so has to be looked up. What comes of it is judged.
NO_ADDRESSES = (
    "2130706433 0x7f000001 0x7f.1 0177.0.0.1 127.1 127.0.1 127.0.0.01 1.2.3.4.5 1.2.3.256 [::1] ::g a.b".split()
)


def test_the_table() -> None:
    found = {text: reach(ip_address(text)) for text in REFUSED + PUBLIC}
    assert found == dict.fromkeys(REFUSED, Reach.REFUSED) | dict.fromkeys(PUBLIC, Reach.PUBLIC)
    assert len(found) == len(REFUSED) + len(PUBLIC)


def test_other_spellings_are_no_addresses() -> None:
    assert [text for text in NO_ADDRESSES if parsed(text) is not None] == []


LISTS = [
    ("10.0.0.5", ["10.0.0.0/8"], Reach.LISTED),
    ("11.0.0.5", ["10.0.0.0/8"], Reach.PUBLIC),
    ("192.168.0.5", ["10.0.0.0/8"], Reach.REFUSED),
    ("::ffff:10.0.0.5", ["10.0.0.0/8"], Reach.LISTED),
    ("64:ff9b::10.0.0.5", ["10.0.0.0/8"], Reach.LISTED),
    ("64:ff9b::10.0.0.5", ["64:ff9b::/96"], Reach.REFUSED),
    ("::10.0.0.5", ["10.0.0.0/8"], Reach.REFUSED),
    ("2002:a00:5::", ["10.0.0.0/8"], Reach.REFUSED),
    ("2002:a00:5::", ["2002::/16"], Reach.REFUSED),
    ("2002:a00:5::", ["2002::/16", "10.0.0.0/8"], Reach.LISTED),
    ("2002:808:808::", ["2002::/16"], Reach.LISTED),
    ("64:ff9b:1::8.8.8.8", ["64:ff9b:1::/48"], Reach.LISTED),
    ("64:ff9b:1::7f00:1", ["64:ff9b:1::/48"], Reach.REFUSED),
    ("64:ff9b:1:0:7f:0:800:0", ["64:ff9b:1::/48"], Reach.REFUSED),
    ("::1", ["::1/128"], Reach.LISTED),
    ("fd12::1", ["fd00::/8"], Reach.LISTED),
    ("127.0.0.1", ["127.0.0.1/32"], Reach.LISTED),
    ("127.0.0.1", ["0.0.0.0/0", "127.0.0.0/8"], Reach.LISTED),
    # A list that holds them by its size does not mean these.
    ("127.0.0.1", ["0.0.0.0/0"], Reach.REFUSED),
    ("127.0.0.1", ["126.0.0.0/7"], Reach.REFUSED),
    ("::ffff:127.0.0.1", ["0.0.0.0/0", "::/0"], Reach.REFUSED),
    ("::1", ["::/0"], Reach.REFUSED),
    ("0.0.0.0", ["0.0.0.0/0"], Reach.REFUSED),
    ("169.254.169.254", ["0.0.0.0/0"], Reach.REFUSED),
    ("::ffff:169.254.169.254", ["0.0.0.0/0", "::/0"], Reach.REFUSED),
    ("168.63.129.16", ["0.0.0.0/0"], Reach.REFUSED),
    ("100.100.100.200", ["100.64.0.0/10"], Reach.REFUSED),
    ("224.0.0.1", ["0.0.0.0/0"], Reach.REFUSED),
    ("255.255.255.255", ["0.0.0.0/0"], Reach.REFUSED),
    ("::", ["::/0"], Reach.REFUSED),
    ("fe80::1", ["::/0"], Reach.REFUSED),
    ("fd00:ec2::254", ["fd00::/8"], Reach.REFUSED),
    ("ff02::1", ["::/0"], Reach.REFUSED),
    ("fd12::1%eth0", ["fd00::/8"], Reach.REFUSED),
]


def test_allowed_networks() -> None:
    for text, networks, expected in LISTS:
        assert reach(ip_address(text), [ip_network(each) for each in networks]) is expected, text


V4 = [network for network in _SPECIAL if isinstance(network, IPv4Network)]
SPECIAL_V4 = st.sampled_from(V4).flatmap(
    lambda network: st.integers(int(network.network_address), int(network.broadcast_address))
)
# Each builds an IPv6 address around an IPv4 one; the second number fills what is free.
FORMS: dict[str, Callable[[int, int], int]] = {
    "mapped": lambda v4, _: 0xFFFF << 32 | v4,
    "compatible": lambda v4, _: v4,
    "translated": lambda v4, _: 0xFFFF << 48 | v4,
    "NAT64": lambda v4, _: 0x64FF9B << 96 | v4,
    "local NAT64": lambda v4, free: 0x64FF9B0001 << 80 | free % 2**48 << 32 | v4,
    "local NAT64, /48": lambda v4, _: 0x64FF9B0001 << 80 | v4 >> 16 << 64 | (v4 & 0xFFFF) << 40,
    "local NAT64, /56": lambda v4, free: 0x64FF9B0001 << 80 | free % 2**8 << 72 | v4 >> 24 << 64 | (v4 % 2**24) << 32,
    "local NAT64, /64": lambda v4, free: 0x64FF9B0001 << 80 | free % 2**16 << 64 | v4 << 24,
    "6to4": lambda v4, free: 0x2002 << 112 | v4 << 80 | free % 2**80,
    "Teredo, client": lambda v4, free: 0x20010000 << 96 | free % 2**64 << 32 | v4 ^ 0xFFFFFFFF,
    "Teredo, server": lambda v4, free: 0x20010000 << 96 | v4 << 64 | free % 2**64,
    "ISATAP": lambda v4, free: 1 << 125 | free % 2**61 << 64 | 0x5EFE << 32 | v4,
    "ISATAP, global": lambda v4, free: 1 << 125 | free % 2**61 << 64 | 0x2005EFE << 32 | v4,
}


@settings(max_examples=400)
@given(form=st.sampled_from(sorted(FORMS)), v4=SPECIAL_V4, free=st.integers(0, 2**128 - 1))
def test_no_address_with_a_special_one_inside_passes(form: str, v4: int, free: int) -> None:
    """Nor if the operator permits all of IPv6, because that is not about IPv4."""
    # These two are the unspecified address and loopback instead.
    assume(form != "compatible" or v4 > 1)
    address = IPv6Address(FORMS[form](v4, free))
    assert not is_allowed(address)
    assert not is_allowed(address, [ip_network("::/0")])
    assert any(isinstance(each, IPv4Address) for each in destinations(address))


@given(st.one_of(st.ip_addresses(), st.integers(0, 2**128 - 1).map(IPv6Address), SPECIAL_V4.map(IPv4Address)))
def test_what_python_calls_special_is_refused(address: IPv4Address | IPv6Address) -> None:
    spelled = [each for each in destinations(address) if each == address]
    if spelled and (not address.is_global or address.is_multicast):
        assert not is_allowed(address)


@given(st.integers(0, 2**128 - 1))
def test_all_of_ipv6_outside_global_unicast_is_refused_or_holds_a_public_ipv4(value: int) -> None:
    address = IPv6Address(value)
    if is_allowed(address) and value >> 125 != 1:
        assert all(isinstance(each, IPv4Address) for each in destinations(address))
