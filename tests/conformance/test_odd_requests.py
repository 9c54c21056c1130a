"""Odd requests, as a real ComfyUI answered them: fields of other types, bodies that are no JSON, names that lead away.

A gateway says what is wrong where a ComfyUI answers a bare status. What else differs stands in `DELIBERATE`, and in
docs/compatibility.md.
"""

from __future__ import annotations

import base64
import contextlib
import json
from fnmatch import fnmatchcase
from typing import Any

import aiohttp
import pytest
from yarl import URL

from tests.conformance.replay import normal, recording
from tests.conformance.target import Target
from tests.support.lab import Lab

ODD = recording("odd_requests.json")
# In their order, because some find what those before them left.
GROUPS = list(dict.fromkeys(exchange["case"].partition(" ")[0] for exchange in ODD))
# Status of a gateway's answer, by patterns of cases.
DELIBERATE = {
    # A byte order mark is skipped, and UTF-16 is read.
    "* *[./]bom*": 200,
    "* *utf16": 200,
    "prompt body.sig": 400,
    "prompt extra_data*.null": 200,
    # A number that is not finite has no place in a queue.
    "prompt number.nan": 400,
    "prompt number.NaN": 400,
    "prompt number.inf": 400,
    "prompt number.1e400": 400,
    # ComfyUI does nothing, and answers 200.
    "queue *": 400,
    "history *": 400,
    "mask ref.*": 400,
    "interrupt *": 200,
    "upload *": 200,
    # ComfyUI looks for the file through a folder that is not there.
    "view *zz/..": 200,
    "view *%00*": 403,
    "userdata *..*": 400,
    "userdata *%00*": 400,
    "userdata *a%0A*": 400,
    "userdata *a%0a*": 400,
    "userdata POST /userdata/": 404,
    "other OPTIONS /prompt": 405,
}
# They differ from run to run.
_VOLATILE = {"modified", "created"}

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def _exchange(http: aiohttp.ClientSession, base: str, request: dict[str, Any]) -> tuple[int, str, Any]:
    """Make a recorded request; (status, Content-Type, body). A body that is no JSON and no short text is its length."""
    body = base64.b64decode(request["body_b64"]) if "body_b64" in request else request.get("body", "").encode()
    headers, url = request.get("headers", {}), URL(base + request["path"], encoded=True)
    data = body if "body" in request or "body_b64" in request else None
    skipped = {"Content-Type"}
    async with http.request(
        request["method"], url, data=data, headers=headers, skip_auto_headers=skipped, allow_redirects=False
    ) as answer:
        raw, kind = await answer.read(), answer.headers.get("Content-Type", "")
        with contextlib.suppress(ValueError):
            if kind.startswith("application/json"):
                return answer.status, kind, json.loads(raw)
        is_text = len(raw) < 400 and (kind.startswith("text") or not kind)
        return answer.status, kind, raw.decode() if is_text else {"_bytes": len(raw)}


def _settled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: "*" if key in _VOLATILE else _settled(item) for key, item in value.items()}
    return [_settled(item) for item in value] if isinstance(value, list) else value


def _difference(target: Target, exchange: dict[str, Any], status: int, kind: str, body: Any) -> str | None:
    """Return how an answer differs from the recorded one; None if it does not, or may."""
    recorded: int = exchange["status"]
    if target.kind == "gateway" and exchange["case"].startswith("prompt ") and status == 500:
        return "500, though the prompt is at fault"
    if target.kind == "gateway" and status != recorded:
        deliberate = [code for pattern, code in DELIBERATE.items() if fnmatchcase(exchange["case"], pattern)]
        if status in deliberate or (recorded == 500 and status == 400):
            return None if status < 400 or body["error"] else f"{status} without a reason"
    if status != recorded:
        return f"{status} {body}, not {recorded} {exchange['body']}"
    if target.kind == "gateway" and recorded >= 400 and kind.startswith("application/json"):
        return None if body["error"] else "no reason"
    wanted = exchange["body"]
    if target.kind == "gateway" and isinstance(wanted, dict) and "_bytes" in wanted:
        return None
    if kind != exchange["content_type"]:
        return f"{kind}, not {exchange['content_type']}"
    found, expected = (_settled(normal(value)) for value in (body, wanted))
    return None if found == expected else f"{found}, not {expected}"


@pytest.mark.parametrize("group", GROUPS)
async def test_odd_requests(target: Target, lab: Lab, group: str) -> None:
    differences = []
    for exchange in ODD:
        if exchange["case"].partition(" ")[0] == group:
            answer = await _exchange(lab.http, target.url, exchange["request"])
            difference = _difference(target, exchange, *answer)
            if difference is not None:
                differences.append(f"{exchange['case']}: {difference[:700]}")
    assert not differences, "\n".join(differences)
