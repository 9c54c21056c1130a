"""Partner keys, which a prompt carries for services that its nodes call. Pure.

ComfyUI takes them from extra_data and shows them nowhere (execution.py, SENSITIVE_EXTRA_DATA_KEYS), save that the error
of a node that has one as a hidden input repeats it among its ``current_inputs`` (execution.py, execute). Here they are
in memory for the job's life, go to the backend that runs it, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gateway.comfy import json_codec

NAMES = ("api_key_comfy_org", "auth_token_comfy_org")
# Reason and error type for a job that must be sent again, but has lost its keys.
LOST = ("it needs the partner keys that came with it, which are not kept over a restart; send it again", "SecretsLost")
HIDDEN = "[partner key]"
_MARK = b"_comfy_org"
# Shorter texts are not replaced, because they are no keys and may occur anywhere.
_SHORTEST = 6
_MAX_DEPTH = 64


def may_hold(body: bytes) -> bool:
    """Return True if a prompt's body may name a partner key. A cheap check."""
    return _MARK in body


def without(value: Any, depth: int = 0) -> Any:
    """Return a copy without items named as a partner key, because ComfyUI would write them into images' metadata."""
    if depth > _MAX_DEPTH:
        return value
    if isinstance(value, dict):
        return {key: without(item, depth + 1) for key, item in value.items() if key not in NAMES}
    return [without(item, depth + 1) for item in value] if isinstance(value, list) else value


class Censor:
    """Remover of a job's partner keys from its backend's messages and entries.

    Args:
        secrets: the job's keys by their names, as far as they are known.
        had_secrets: True if the job came with keys. If they are unknown since a restart, ``current_inputs`` is emptied.
    """

    def __init__(self, secrets: Mapping[str, Any], *, had_secrets: bool) -> None:
        self._texts = _texts(list(secrets.values()))
        self._blind = had_secrets and not secrets

    def encoded(self, data: bytes) -> bytes:
        """Return JSON without the keys; the same object if it holds none."""
        if not self._blind and not self.is_in(data):
            return data
        try:
            return json_codec.encoder_for(data)(self.value(json_codec.loads(data)))
        except json_codec.MalformedJson:
            return b"" if self.is_in(data) else data

    def value(self, value: Any, depth: int = 0) -> Any:
        """Return a copy of a value without the keys."""
        if isinstance(value, str):
            for text in self._texts:
                value = value.replace(text, HIDDEN)
            return value
        if depth > _MAX_DEPTH:
            return HIDDEN if isinstance(value, (dict, list)) else value
        if isinstance(value, list):
            return [self.value(item, depth + 1) for item in value]
        if not isinstance(value, dict):
            return value
        shown = {self.value(key): self.value(item, depth + 1) for key, item in value.items()}
        if self._blind and "current_inputs" in shown:
            shown["current_inputs"] = {}
        return shown

    def is_in(self, data: bytes) -> bool:
        """Return True if data holds one of the keys, plainly or as JSON escapes it."""
        return any(
            text.encode("utf-8", "surrogatepass") in data or json_codec.dumps_exact(text)[1:-1] in data
            for text in self._texts
        )


def _texts(values: Collection[Any]) -> tuple[str, ...]:
    """Return all texts in the keys' values, the longest first, because one may be a part of another."""
    found: set[str] = set()
    left = list(values)
    while left:
        value = left.pop()
        if isinstance(value, str) and len(value) >= _SHORTEST:
            found.add(value)
        elif isinstance(value, (list, dict)):
            left.extend(value if isinstance(value, list) else value.values())
    return tuple(sorted(found, key=len, reverse=True))
