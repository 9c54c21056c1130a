"""URLs of webhooks: spellings that are refused, and the one spelling that is kept."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

from gateway.settings.webhooks import MAX_URL
from gateway.webhooks.addresses import is_allowed, parsed
from gateway.webhooks.urls import BadUrl, Rules, check_url

RULES = Rules()
LAN = Rules.of(allow_http=True, allow_networks=["10.0.0.0/8", "fd00::/8"], ports=[443])

REFUSED = [
    "",
    "https:",
    "https://",
    "https:///hook",
    "https:a.example/hook",
    "//a.example/hook",
    "a.example/hook",
    "http://a.example/hook",
    "ftp://a.example/hook",
    "file:///etc/passwd",
    "unix:///run/docker.sock",
    "http+unix://%2Frun%2Fdocker.sock/hook",
    "ws://a.example/",
    "wss://a.example/",
    "javascript:alert(1)",
    "https://user@a.example/",
    "https://user:password@a.example/",
    "https://:password@a.example/",
    "https://@a.example/",
    "https://a.example@127.0.0.1/",
    "https://a.example\\@127.0.0.1/",
    "https://127.0.0.1\\a.example/",
    "https://a.example:0/",
    "https://a.example:80/",
    "https://a.example:8188/",
    "https://a.example:65979/",
    "https://a.example:443:80/",
    "https://a.example:x/",
    "https://a.example /",
    " https://a.example/",
    "https://a.example/\r\nX: y",
    "https://a.exa\tmple/",
    "https://a.example/\x00",
    "https://a.example\u2028/",
    "https://a.exa%00mple/",
    "https://127%2e0.0.1/",
    "https://127.0.0.1/",
    "https://127.0.0.1./",
    "https://127.0.0.1.:443/",
    "https://127。0。0。1/",
    "https://１２７.0.0.1/",
    "https://127.1/",
    "https://127.0.1/",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.1/",
    "https://0x7f.0x0.0x0.0x1/",
    "https://0177.0.0.1/",
    "https://017700000001/",
    "https://127.0.0.01/",
    "https://1.2.3.4.5/",
    "https://1.2.3.256/",
    "https://a.example.0x1/",
    "https://0/",
    "https://0.0.0.0/",
    "https://10.0.0.1/",
    "https://169.254.169.254/latest/meta-data/",
    "https://168.63.129.16/",
    "https://[::]/",
    "https://[::1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[0:0:0:0:0:ffff:127.0.0.1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[2002:7f00:1::]/",
    "https://[fe80::1]/",
    "https://[fe80::1%25eth0]/",
    "https://[fe80::1%eth0]/",
    "https://[2a00:1450::1%25eth0]/",
    "https://[v1.a]/",
    "https://[::1]a/",
    "https://[::1/",
    "https://[2a00:1450:1l]#:443",
    "https://[2a00:1:]:44#/",
    "https://[%a::%lo]:443/",
    "https://a..example/",
    "https://.a.example/",
    "https://a.example../",
    "https://-a.example/",
    "https://a-.example/",
    "https://*.example/",
    "https://a,b.example/",
    "https://a;b.example/",
    "https://a\u00adb.example/",
    "https://" + "a" * 64 + ".example/",
    "https://" + "a." * 127 + "example/",
    "https://a.example/" + "a" * MAX_URL,
]
KEPT = [
    ("https://a.example", "https://a.example"),
    ("HTTPS://A.Example/Hook", "https://a.example/Hook"),
    ("https://a.example./hook", "https://a.example/hook"),
    ("https://a.example:443/hook?a=b&c=%2F", "https://a.example/hook?a=b&c=/"),
    ("https://a.example/hook#part", "https://a.example/hook"),
    ("https://a.example/#@127.0.0.1/", "https://a.example/"),
    ("https://a.example?@127.0.0.1/", "https://a.example/?@127.0.0.1/"),
    ("https://a.example/@b", "https://a.example/@b"),
    ("https://bücher.example/", "https://xn--bcher-kva.example/"),
    ("https://faß.example/", "https://xn--fa-hia.example/"),
    ("https://8.8.8.8/", "https://8.8.8.8/"),
    ("https://[2a00:1450:0::1]/", "https://[2a00:1450::1]/"),
    ("https://[::ffff:8.8.8.8]/", "https://[::ffff:808:808]/"),
    ("https://receiver_1/", "https://receiver_1/"),
    ("https://127.0.0.1.example/", "https://127.0.0.1.example/"),
    ("https://localhost/", "https://localhost/"),
]


def test_refused() -> None:
    """The reason repeats nothing of the URL, because a URL may hold a token."""
    for text in REFUSED:
        with pytest.raises(BadUrl) as raised:
            print(f"kept: {check_url(text, RULES)!r} for {text!r}")
        assert "example" not in str(raised.value)
        assert "127" not in str(raised.value)


def test_kept() -> None:
    """A name is judged at each attempt, by its addresses then: so localhost passes here."""
    assert {text: check_url(text, RULES) for text, _ in KEPT} == dict(KEPT)


@pytest.mark.parametrize(
    ("text", "is_permitted"),
    [
        ("http://receiver.lan:9000/", True),
        ("http://10.0.0.5:9000/", True),
        ("http://[fd00::5]:9000/", True),
        ("http://[::ffff:a00:5]:9000/", True),
        ("http://192.168.0.5:9000/", False),
        ("http://[fe80::5]:9000/", False),
        ("http://127.0.0.1:9000/", False),
        ("https://8.8.8.8:9000/", False),
        ("https://8.8.8.8/", True),
    ],
)
def test_networks_of_the_operator(text: str, is_permitted: bool) -> None:
    if is_permitted:
        assert check_url(text, LAN) == text
    else:
        with pytest.raises(BadUrl):
            check_url(text, LAN)


def test_any_port() -> None:
    assert check_url("https://a.example:8443/", Rules.of(False, [], None)) == "https://a.example:8443/"
    assert check_url("https://a.example:8443/", Rules.of(False, [], [443, 8443])) == "https://a.example:8443/"


ODD = st.text(st.sampled_from("ab1.:/@[]%#?\\ \t-_x0f７。é\u00ad"), max_size=24)


@given(st.one_of(ODD, st.text(max_size=24)))
@example("[::1]")
@example("[::1]@")
@example("[a:1]:1#")
def test_a_kept_url_is_read_in_one_way(text: str) -> None:
    """It stays as it is if it is checked again, and its host is a plain name or an address that is allowed."""
    try:
        kept = check_url(f"https://{text}", RULES)
    except BadUrl:
        return
    url = URL(kept)
    assert check_url(kept, RULES) == kept
    assert kept.isascii()
    assert (url.scheme, url.port, url.raw_user, url.raw_password) == ("https", 443, None, None)
    host = url.raw_host or ""
    address = parsed(host)
    assert is_allowed(address) if address else set(host) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.")


def test_the_spelling_that_is_kept_is_one_that_may_be_sent_to() -> None:
    """A letter beyond ASCII becomes six characters."""
    fits = check_url("https://hooks.example/" + "\u00e9" * 300, Rules())
    assert check_url(fits, Rules()) == fits
    with pytest.raises(BadUrl, match="characters"):
        check_url("https://hooks.example/" + "\u00e9" * 400, Rules())
