"""Deletes of history entries that backends do not confirm."""

from __future__ import annotations

from gateway.jobs.lifecycle.history_deletion import drop_late


def test_a_delete_that_is_never_confirmed_is_given_up() -> None:
    waiting = {"old": 5.0, "due": 7.0, "new": 7.5}
    drop_late(waiting, 7.0)
    assert waiting == {"new": 7.5}
