"""The ways in which clients carry a key, and what of several counts."""

from __future__ import annotations

import base64

import pytest
from multidict import CIMultiDict, MultiDict

from gateway.tenants.credentials import AmbiguousKey, presented_key


def basic(text: str) -> str:
    """Basic credentials."""
    return "Basic " + base64.b64encode(text.encode()).decode()


def present(headers: list[tuple[str, str]], query: list[tuple[str, str]], cookie: str) -> str | None:
    """What counts."""
    cookies = f"other=1; comfyui_gateway_key={cookie}" if cookie else ""
    return presented_key(CIMultiDict(headers), MultiDict(query), cookies)


@pytest.mark.parametrize(
    ("headers", "query", "cookie", "key"),
    [
        ([("X-API-Key", "k")], [], "", "k"),
        ([("x-api-key", " k ")], [], "", "k"),
        ([("Authorization", "Bearer k")], [], "", "k"),
        ([("Authorization", "bearer  k ")], [], "", "k"),
        ([("Authorization", basic("u:k"))], [], "", "k"),
        ([("Authorization", basic("k:"))], [], "", "k"),
        ([("Authorization", basic("u:k:with:colons"))], [], "", "k:with:colons"),
        ([("Authorization", "Basic ###")], [], "", None),
        ([("Authorization", "Basic äöü")], [], "", None),
        ([], [("token", "k")], "", "k"),
        ([], [], "k", "k"),
        ([], [], "", None),
        # The first of them counts.
        ([("X-API-Key", "a"), ("Authorization", "Bearer b")], [("token", "c")], "d", "a"),
        ([("Authorization", "Bearer b")], [("token", "c")], "d", "b"),
        ([("Authorization", basic("u:b"))], [("token", "c")], "d", "b"),
        ([], [("token", "c")], "d", "c"),
        # What is empty, or no way of carrying a key, is not there.
        ([("X-API-Key", ""), ("Authorization", "Bearer b")], [], "", "b"),
        ([("X-API-Key", "  ")], [("token", "c")], "", "c"),
        ([("Authorization", "Bearer ")], [("token", "c")], "", "c"),
        ([("Authorization", "")], [("token", "")], "d", "d"),
        ([("Authorization", "Negotiate abc")], [("token", "c")], "", "c"),
        # The same key twice is one.
        ([("X-API-Key", "a"), ("X-API-Key", "a")], [("token", "c"), ("token", "c")], "", "a"),
        # Bytes that are no UTF-8 come as surrogates.
        ([("X-API-Key", "\udcff\udcfe")], [], "", "\udcff\udcfe"),
    ],
)
def test_credentials(
    headers: list[tuple[str, str]], query: list[tuple[str, str]], cookie: str, key: str | None
) -> None:
    assert present(headers, query, cookie) == key


@pytest.mark.parametrize(
    ("headers", "query", "where"),
    [
        ([("X-API-Key", "a"), ("x-api-key", "b")], [], "X-API-Key"),
        ([("X-API-Key", "a"), ("X-API-Key", "")], [], "X-API-Key"),
        ([("Authorization", "Bearer a"), ("Authorization", "Bearer b")], [], "Authorization"),
        ([], [("token", "a"), ("token", "b")], "token"),
    ],
)
def test_two_keys_in_one_credential_are_refused(
    headers: list[tuple[str, str]], query: list[tuple[str, str]], where: str
) -> None:
    with pytest.raises(AmbiguousKey, match=where):
        present(headers, query, "")
