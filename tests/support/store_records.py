"""Records of jobs for a store."""

from __future__ import annotations

from gateway.store.protocol import HistoryRecord, JobRecord


def job(prompt_id: str, number: float = 0) -> JobRecord:
    """An open job."""
    return JobRecord("t", prompt_id, "g", number, 1.0, "sending", "b1", prompt_id, 5, None, 0, None, None, b"{}")


ENTRY = b'{"x": "%b"}' % (b"1" * 800)


def ended(prompt_id: str) -> HistoryRecord:
    """A job that ended."""
    return HistoryRecord("t", prompt_id, "b1", prompt_id, 0, "success", None, None, b"{}", ENTRY)
