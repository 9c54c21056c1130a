"""Secret names: one for each purpose, tenant and part, the same each time, and found in any text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.comfy.file_refs import FileRef
from gateway.tenants.secret_names import KEY_SIZE, SECRET_FOLDER, SecretNames, holds_secret

KEY = bytes(range(KEY_SIZE))
NAMES = SecretNames(KEY)
DIGEST = b"d" * 32
REF = FileRef("input", "sub", "a.png")
# Half a surrogate pair may come in a JSON text.
_TEXTS = st.text(st.characters(exclude_categories=()), max_size=6)
_REFS = st.builds(FileRef, st.sampled_from(["input", "output", "temp"]), _TEXTS, _TEXTS)
_UPLOADS = st.tuples(_TEXTS, _REFS)
_NODES = st.tuples(_TEXTS, st.binary(max_size=6), _TEXTS)


def test_names_have_their_forms() -> None:
    assert re.fullmatch(r"o/[0-9a-f]{32}/f", NAMES.output_folders("anna")(DIGEST))
    assert re.fullmatch(r"u/[0-9a-f]{32}/f", NAMES.upload_folder("anna", REF))
    assert re.fullmatch(r"g[0-9a-f]{24}", NAMES.added_node("anna", DIGEST, "join"))


def test_names_stay_what_they_are() -> None:
    """Files on backends are found by these names: another way to make them would lose the files."""
    assert NAMES.output_folders("anna")(DIGEST) == "o/06a29dc4d13fe86de598497680d169e7/f"
    assert NAMES.upload_folder("anna", REF) == "u/d36e9fb057e96c8f66198f17d2eb93b0/f"
    assert NAMES.added_node("anna", DIGEST, "join") == "g2330f7be303cc18143e4ad9b"


def test_no_two_purposes_tenants_or_parts_share_a_name() -> None:
    same = SecretNames(KEY)
    other = SecretNames(KEY[::-1])
    found = [
        *(names.output_folders(tenant)(DIGEST) for names in (NAMES, other) for tenant in ("anna", "ben", "")),
        *(names.upload_folder(tenant, REF) for names in (NAMES, other) for tenant in ("anna", "ben", "")),
        *(names.added_node(tenant, DIGEST, "join") for names in (NAMES, other) for tenant in ("anna", "ben", "")),
        NAMES.output_folders("anna")(DIGEST[:-1]),
        NAMES.upload_folder("anna", FileRef("temp", "sub", "a.png")),
        NAMES.upload_folder("anna", FileRef("input", "", "sub/a.png")),
        NAMES.upload_folder("anna", FileRef("input", "suba", ".png")),
        NAMES.added_node("anna", DIGEST, "join2"),
        NAMES.added_node("annad", DIGEST[:-1], "join"),
    ]
    secrets = {name.removesuffix("/f").removeprefix("o/").removeprefix("u/").removeprefix("g")[:24] for name in found}
    assert len(secrets) == len(found)
    assert same.output_folders("anna")(DIGEST) == NAMES.output_folders("anna")(DIGEST)


@given(_UPLOADS, _UPLOADS)
def test_each_upload_has_a_folder_of_its_own(one: tuple[str, FileRef], other: tuple[str, FileRef]) -> None:
    assert (NAMES.upload_folder(*one) == NAMES.upload_folder(*other)) == (one == other)


@given(_NODES, _NODES)
def test_each_added_node_has_an_id_of_its_own(one: tuple[str, bytes, str], other: tuple[str, bytes, str]) -> None:
    assert (NAMES.added_node(*one) == NAMES.added_node(*other)) == (one == other)


@given(_TEXTS, st.integers(0, 5), _TEXTS)
def test_a_longer_tenant_with_a_shorter_name_is_another_upload(tenant: str, cut: int, filename: str) -> None:
    moved, rest = tenant + filename[:cut], filename[cut:]
    assume(moved != tenant)
    one, other = FileRef("input", "", filename), FileRef("input", "", rest)
    assert NAMES.upload_folder(tenant, one) != NAMES.upload_folder(moved, other)


@given(_TEXTS, _TEXTS)
def test_secret_folders_are_found(before: str, after: str) -> None:
    for folder in (NAMES.output_folders("anna")(DIGEST), NAMES.upload_folder("anna", REF)):
        for spelling in (folder, folder.removesuffix("/f")):
            text = before + spelling + after
            assert holds_secret(text)
            assert holds_secret(text.encode("utf-8", "surrogatepass"))
            assert re.search(SECRET_FOLDER, spelling)


@pytest.mark.parametrize(
    "made",
    [
        json.dumps,
        quote,
        lambda folder: quote(folder, safe="").lower(),
        lambda folder: folder.replace("/", "\\"),
        lambda folder: quote(folder.replace("/", "\\")),
    ],
)
def test_secret_folders_are_found_as_windows_json_and_addresses_spell_them(made: Callable[[str], str]) -> None:
    for folder in (NAMES.output_folders("anna")(DIGEST), NAMES.upload_folder("anna", REF)):
        for spelling in (made(folder), json.dumps({"x": f"\n{made(folder)}\n"})):
            match = re.search(SECRET_FOLDER, spelling)
            assert match is not None
            assert match[0].endswith("f")
            assert holds_secret(spelling.encode())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "o/",
        "u/f",
        "output/pic.png",
        "o/0123456789abcdef0123456789abcde/f",
        "o/0123456789ABCDEF0123456789ABCDEF/f",
        "x/0123456789abcdef0123456789abcdef/f",
        "0123456789abcdef0123456789abcdef",
    ],
)
def test_other_names_are_no_secrets(text: str) -> None:
    assert not holds_secret(text)
    assert not holds_secret(text.encode())


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 3"):
        SecretNames(b"abc")
