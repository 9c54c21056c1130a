"""Prompt ids: random UUIDs in canonical form, as ComfyUI mints them (server.py, post_prompt)."""

from __future__ import annotations

import os

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
    """Return a fresh id (RFC 9562, version 4)."""
    raw = bytearray(_pool.take(16))
    # Version and variant. A UUID of the standard library takes three times as long to make and to write.
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    digits = raw.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
