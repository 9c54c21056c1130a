"""Place and ETA of an open job in headers and JSON. Pure."""

from __future__ import annotations

from typing import Any

from gateway.jobs.routing.eta import Shown

PLACE_HEADER, ETA_HEADER = "X-Gateway-Place", "X-Gateway-ETA"
# From here on seconds are whole ones.
WHOLE_SECONDS = 10.0


def eta_headers(shown: Shown) -> dict[str, str]:
    """Return the headers for an open job, each a number with parameters (RFC 8941); no ETA if none is known."""
    headers = {PLACE_HEADER: f"{shown.place}; load={shown.load}"}
    eta = shown.eta
    if eta is not None:
        headers[ETA_HEADER] = f"{_told(eta.seconds)}; low={_told(eta.low)}; high={_told(eta.high)}"
    return headers


def eta_fields(shown: Shown, prefix: str = "") -> dict[str, Any]:
    """Return the same as fields of a JSON object; the ETA is null if none is known."""
    eta = shown.eta
    told = None if eta is None else {"seconds": _told(eta.seconds), "low": _told(eta.low), "high": _told(eta.high)}
    return {f"{prefix}place": shown.place, f"{prefix}load": shown.load, f"{prefix}eta": told}


def _told(seconds: float) -> float:
    return round(seconds, 1) if seconds < WHOLE_SECONDS else round(seconds)
