"""Odd answers and messages, made of a ComfyUI's own: a seed and a number always give the same one."""

from __future__ import annotations

import gzip
import json
import random
from typing import Any

# What may stand where another value belongs.
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    1e300,
    float("nan"),
    float("inf"),
    2**63,
    10**40,
    "",
    "abc",
    "\ud800",
    "\x00",
    "../../x",
    "x" * 5000,
    [],
    ["x"],
    [None, 1, {}],
    {},
    {"a": 1, "b": 2},
    {"filename": ["x"]},
    [[[[[]]]]],
)
_RAW = (b"", b"\xff\xfe", b"<html></html>", b"[" * 3000, b'{"a":1}{"b":2}', b'{"a":1,}', b'"half', b"NaN")


class Odd:
    """Makes odd answers of good ones."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def body(self, good: bytes) -> bytes:
        """An odd body: other values in places, parts left out, or no JSON at all."""
        if self._rng.random() < 0.2:
            return self._rng.choice((*_RAW, good[: self._rng.randrange(len(good) + 1)]))
        try:
            value = json.loads(good)
        except ValueError:
            return self._rng.choice(_RAW)
        for _ in range(self._rng.randint(1, 3)):
            value = self.value(value)
        return json.dumps(value).encode()

    def value(self, value: Any) -> Any:
        """The same with something odd in one place."""
        if not isinstance(value, (dict, list)) or not value or self._rng.random() < 0.15:
            return self._rng.choice(VALUES)
        places = list(value) if isinstance(value, dict) else list(range(len(value)))
        place = self._rng.choice(places)
        copy: Any = value.copy()
        how = self._rng.random()
        if how < 0.1:
            del copy[place]
        elif how < 0.2 and isinstance(copy, list):
            copy.append(self._rng.choice(VALUES))
        elif how < 0.2:
            copy[self._rng.choice(("", "node", "prompt_id", "5", "\ud800"))] = self._rng.choice(VALUES)
        else:
            copy[place] = self.value(value[place])
        return copy

    def response(self, good: bytes, status: int) -> tuple[int, dict[str, str], bytes]:
        """An odd answer: its status, its headers, its body."""
        how = self._rng.random()
        if how < 0.1:
            return self._rng.choice((201, 204, 302, 400, 404, 429, 500, 502, 599)), {}, good
        body = self.body(good)
        if how < 0.15:
            return status, {"Content-Encoding": self._rng.choice(("gzip", "deflate", "br", "odd"))}, body
        if how < 0.2:
            return status, {"Content-Encoding": "gzip"}, gzip.compress(body)[: self._rng.choice((10, 10_000))]
        return status, {"Content-Type": self._rng.choice(("application/json", "text/html", "x", "image/png; a"))}, body
