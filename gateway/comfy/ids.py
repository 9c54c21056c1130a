"""Prompt ids: random UUIDs in canonical form, as ComfyUI mints them (server.py, post_prompt)."""

from __future__ import annotations

import os
import uuid

_POOL_BYTES = 4096


class _RandomPool:
    """Random bytes of the operating system, fetched many at a time: a call for each id costs more than the id."""

    def __init__(self) -> None:
        self._bytes = b""

    def take(self, count: int) -> bytes:
        if len(self._bytes) < count:
            self._bytes = os.urandom(_POOL_BYTES)
        taken, self._bytes = self._bytes[:count], self._bytes[count:]
        return taken


_pool = _RandomPool()


def new_prompt_id() -> str:
    """A fresh id (RFC 9562, version 4)."""
    return str(uuid.UUID(bytes=_pool.take(16), version=4))
