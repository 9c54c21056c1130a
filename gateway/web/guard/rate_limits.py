"""A tenant's limits in HTTP: 429, Retry-After, and the header fields RateLimit-Policy and RateLimit.

`RateLimit-Policy` and `RateLimit` are those of draft-ietf-httpapi-ratelimit-headers-09: structured fields, a quota `q`
in a window of `w` seconds, `r` of it left, `t` seconds until there is more.
"""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from gateway.tenants.limits import LimitReached, Quota
from gateway.web.http.responses import problem

# Units of limits that count no requests (the draft's section on the quota unit parameter).
_UNITS = {
    "bodies_bytes": "content-bytes",
    "body_bytes": "content-bytes",
    "open_bytes": "content-bytes",
    "upload_bytes": "content-bytes",
    "sockets": "concurrent-requests",
}


# Status and type of refusals that a retry does not change.
_FINAL = {"bad_names_per_prompt": (400, "too_many_bad_names")}


def refuse(reached: LimitReached) -> web.Response:
    """Return the refusal of a request past a limit: 429, or 413 or 400 if waiting does not help."""
    waits = reached.retry_after is not None
    status, type_ = (429, "limit_reached") if waits else _FINAL.get(reached.limit, (413, "body_too_large"))
    headers = {"RateLimit-Policy": _policy(reached.limit, reached.quota, reached.window)}
    if waits:
        headers["Retry-After"] = str(reached.retry_after)
        headers["RateLimit"] = f'"{reached.limit}";r=0;t={reached.retry_after}'
    return problem(
        status,
        type_,
        reached.message,
        f"{reached.limit}: {_shown(reached.used)} of {_shown(reached.value)} in use; {reached}",
        headers,
        limit=reached.limit,
        value=reached.value,
        used=reached.used,
        retry_after=reached.retry_after,
    )


def _shown(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)


def quota_headers(quotas: Iterable[Quota]) -> dict[str, str]:
    """Return the header fields with the remainder of each rate; none if there are no rates."""
    quotas = list(quotas)
    if not quotas:
        return {}
    return {
        "RateLimit-Policy": ", ".join(_policy(q.limit, q.value, q.window) for q in quotas),
        "RateLimit": ", ".join(f'"{q.limit}";r={q.left};t={q.resets_in}' for q in quotas),
    }


def _policy(limit: str, quota: int, window: int | None) -> str:
    unit = f';qu="{_UNITS[limit]}"' if limit in _UNITS else ""
    return f'"{limit}";q={quota}{unit}' + (f";w={window}" if window is not None else "")
