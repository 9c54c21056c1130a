"""Families of paths: the longest prefix counts, and the operator's before a known pack's."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gateway.catalogue.path_families import Family, family_of, parts_below, table_of
from gateway.comfy.pack_routes import Keeps
from gateway.settings import RouteSettings

STATE = Family(("etn", "image"), Keeps.STATE)


def test_family_of() -> None:
    table = table_of({"ETN_LoadImageCache", "Seed (rgthree)"}, ["/api/rgthree", "/my/store/"])
    assert family_of("/api/etn/image/abc-1", table) == family_of("/etn//image", table) == STATE
    assert family_of("/etn/languages", table) == Family(("etn",), Keeps.NOTHING)
    assert family_of("/rgthree/api/config", table) == Family(("rgthree",), Keeps.STATE)
    assert family_of("/API/my/store", table) == Family(("my", "store"), Keeps.STATE)
    assert family_of("/my", table) is None
    assert family_of("/", table) is None
    assert family_of("/etn/image/abc-1", table_of(None, [])) is None


def test_parts_below() -> None:
    assert STATE.name == "/etn/image"
    assert parts_below("/api/ETN/image/Abc-1", STATE) == ["Abc-1"]
    assert parts_below("/picker/5", None) == ["5"]
    assert parts_below("/etn/image", STATE) == []


@pytest.mark.parametrize("prefix", ["etn", "/", "/api", "/api/", "POST /etn", "/etn/*", "/a//b", "/etn?x"])
def test_prefixes_that_are_none(prefix: str) -> None:
    with pytest.raises(ValidationError):
        RouteSettings(sticky=(prefix,))
