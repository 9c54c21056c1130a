"""Known packs: the table in the documents is the table in the code, and only what the fleet has counts."""

from __future__ import annotations

import re
from pathlib import Path

from gateway.comfy.pack_routes import INTERACTIVE, KNOWN, OWN_PREFIXES, Keeps, known_prefixes, packs

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "compatibility.md"
SHOWN = {Keeps.STATE: "state", Keeps.WAITING: "a waiting node", Keeps.NOTHING: "the primary's"}


def test_the_documents_list_the_known_packs() -> None:
    section = DOCUMENT.read_text().partition("| pack | paths | behind them |")[2].partition("The list is")[0]
    rows = re.findall(r"^\|([^|]*)\| ([^|]+) \| ([^|]+) \|$", section, re.MULTILINE)
    listed, pack = set(), ""
    for name, paths, kept in rows:
        pack = name.partition(" (")[0].strip() or pack
        listed |= {(pack, path, kept) for path in re.findall(r"`([^`]+)`", paths)}
    assert listed == {(row.pack, prefix, SHOWN[row.keeps]) for row in KNOWN for prefix in row.prefixes}
    assert len(packs()) >= 10


def test_a_pack_counts_if_the_fleet_has_it() -> None:
    own = dict.fromkeys(OWN_PREFIXES, Keeps.NOTHING)
    assert dict(known_prefixes(None)) == dict(known_prefixes({"SaveImage"})) == own
    assert dict(known_prefixes({"ETN_LoadImageCache"})) == {**own, "/etn/image": Keeps.STATE, "/etn": Keeps.NOTHING}


def test_interactive_classes_are_those_of_packs_with_waiting_nodes() -> None:
    waiting = {name for row in KNOWN if row.keeps is Keeps.WAITING for name in row.classes}
    assert waiting - INTERACTIVE == {"easy fullLoader"}
    assert waiting >= INTERACTIVE
