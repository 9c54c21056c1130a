"""The bus topics of this room."""

from __future__ import annotations


def status_topic(tenant: str) -> str:
    """The bus topic on which a tenant's sessions hear that its counts changed."""
    return f"status:{tenant}"


def session_topic(tenant: str, session_id: str) -> str:
    """The bus topic of one session's frames. With its length, so that no tenant's name runs into a clientId."""
    return f"session:{len(tenant)}:{tenant}:{session_id}"
