"""A browser in front of a proxy, and the proxy's certificate."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

import aiohttp
import trustme

from tests.support.two_users import ANNA

HTML = {"Accept": "text/html"}


def certificate(folder: Path) -> tuple[tuple[Path, Path], ssl.SSLContext]:
    """Certificate and key for loopback, and the context of a client that trusts them."""
    authority, context = trustme.CA(), ssl.create_default_context()
    issued = authority.issue_cert("127.0.0.1")
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    files[1].write_bytes(issued.private_key_pem.bytes())
    authority.configure_trust(context)
    return files, context


async def as_a_browser(http: aiohttp.ClientSession, origin: str, prefix: str) -> dict[str, str]:
    """Sign in as a browser does, from link to link; return the headers of the page's requests from then on."""
    async with http.get(f"{origin}{prefix}/", headers=HTML, allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (303, f"{prefix}/gateway/signin")
        page = answer.headers["Location"]
    async with http.get(origin + page) as answer:
        action = re.findall(r'<form method="post" action="([^"]*)"', await answer.text())
        assert action == [f"{prefix}/gateway/signin"]
    form, own = {"key": ANNA, "next": "/"}, {"Origin": origin}
    async with http.post(origin + action[0], data=form, headers=own, allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (303, f"{prefix}/"), await answer.text()
        cookie, *marks = answer.headers["Set-Cookie"].split("; ")
    assert f"Path={prefix or '/'}" in marks
    assert ("Secure" in marks) == origin.startswith("https")
    return {"Cookie": cookie, "Origin": origin}
