"""The audit log: what is counted rather than told, and that no level silences it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from gateway.telemetry.audit import ELSEWHERE, Action, Reason, Refusal, RefusalTally, Who

UNKNOWN = Reason.UNKNOWN
NOBODY, ANNA = Who(), Who("anna", "t", "user")
ROOT = Path(__file__).parents[2]
PROGRAM = """
import asyncio
from gateway.telemetry import logs
from gateway.telemetry.audit import Action, Audit, Reason, Who
async def main():
    logs.configure("error", "{style}")
    logs.get("part").warning("not this")
    audit = Audit(enabled={enabled})
    audit.start()
    audit.note(Action.KEY_MADE, Who("boss", "t", "admin"), "10.0.0.1", "anna")
    for _ in range(1000):
        audit.refused(Reason.UNKNOWN, "10.0.0.9", "10.0.0.9", None)
    await audit.close()
asyncio.run(main())
"""


def lines(style: str, enabled: bool) -> list[str]:
    """What is written at log.level error."""
    program = PROGRAM.format(style=style, enabled=enabled)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def test_it_is_written_whatever_the_level_is() -> None:
    made, first, more = (json.loads(line) for line in lines("json", enabled=True))
    made.pop("ts")
    assert made == {
        "event": "audit",
        "level": "info",
        "part": "audit",
        "action": "key_made",
        "who": "boss",
        "tenant": "t",
        "role": "admin",
        "client_address": "10.0.0.1",
        "what": "anna",
        "outcome": "ok",
    }
    assert (first["action"], first["reason"], first["count"], first["client_address"]) == (
        "key_refused",
        "unknown",
        1,
        "10.0.0.9",
    )
    assert more["count"] == 999
    assert len(lines("console", enabled=True)) == 3
    assert lines("json", enabled=False) == []


def test_the_first_is_told_and_the_others_are_counted() -> None:
    tally = RefusalTally(interval=60)
    assert tally.add("a", UNKNOWN, NOBODY, "key", 0) == Refusal("a", UNKNOWN, NOBODY, 1, "key")
    assert tally.add("a", UNKNOWN, NOBODY, "key", 1) is None
    assert tally.add("a", UNKNOWN, NOBODY, "key", 2) is None
    assert tally.add("a", Reason.EXPIRED, ANNA, "key", 2) == Refusal("a", Reason.EXPIRED, ANNA, 1, "key")
    assert tally.add("b", UNKNOWN, NOBODY, "key", 2) == Refusal("b", UNKNOWN, NOBODY, 1, "key")
    assert tally.due(59) == []
    assert tally.due(62) == [Refusal("a", UNKNOWN, NOBODY, 2, "key")]
    # It goes on, so it is not told at once again.
    assert tally.add("a", UNKNOWN, NOBODY, "key", 63) is None
    assert tally.due(122) == [Refusal("a", UNKNOWN, NOBODY, 1, "key")]
    assert tally.due(182) == []
    assert len(tally) == 0
    assert tally.add("a", UNKNOWN, NOBODY, "key", 183) == Refusal("a", UNKNOWN, NOBODY, 1, "key")


def test_many_addresses_are_one_line() -> None:
    tally = RefusalTally(maximum=10, interval=60)
    told = [tally.add(f"2001:db8:0:{n:x}::/64", UNKNOWN, NOBODY, "key", 0) for n in range(1000)]
    assert len([refusal for refusal in told if refusal]) == 11
    assert tally.due(60) == [Refusal(ELSEWHERE, UNKNOWN, NOBODY, 989, "key")]


def test_what_is_counted_is_named_but_not_without_end() -> None:
    tally = RefusalTally(interval=60)
    assert tally.add("a", Reason.ROLE, ANNA, "POST /free", 0) == Refusal("a", Reason.ROLE, ANNA, 1, "POST /free")
    for n in range(100):
        assert tally.add("a", Reason.ROLE, ANNA, f"GET /{n // 2}", 1) is None
    assert tally.due(60) == [Refusal("a", Reason.ROLE, ANNA, 100, "GET /0, GET /1, GET /2, GET /3, GET /4")]
    assert tally.add("a", Reason.ROLE, ANNA, "GET /x", 61) is None
    assert tally.due(120) == [Refusal("a", Reason.ROLE, ANNA, 1, "GET /x")]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 40)), max_size=100))
def test_nothing_is_lost(steps: list[tuple[str, float]]) -> None:
    """What is told adds up to what happened, in few lines."""
    tally, now, told = RefusalTally(maximum=3, interval=60), 0.0, []
    for place, later in steps:
        now += later
        told += tally.due(now)
        if refusal := tally.add(place, UNKNOWN, NOBODY, "key", now):
            told.append(refusal)
        assert len(tally) <= 4
    told += tally.due(float("inf"))
    assert sum(refusal.count for refusal in told) == len(steps)
    assert len(told) <= 2 * 4 * (now // 60 + 2)


def test_every_action_is_documented() -> None:
    text = (ROOT / "docs" / "operations.md").read_text().split("## The audit log")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(Action)
    assert all(str(reason) in text for reason in Reason)
    paths = [path for part in ("web", "fleet") for path in (ROOT / "gateway" / part).rglob("*.py")]
    written = "\n".join(path.read_text() for path in paths)
    written += (ROOT / "gateway" / "telemetry" / "audit.py").read_text()
    for action in Action:
        assert f"Action.{action.name}" in written, action
