"""Expiry of uploads that nobody has used for long. Pure: the times are passed in.

Uses are noted by the wall clock, because they outlive the process, and a wall clock may be wrong for a while. So an
upload expires only if it is found too old for an hour on end, during which nobody set the clock.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.telemetry.times import HOLD_SECONDS, was_set


class Expiry:
    """Decides which uploads expire.

    Args:
        keep: seconds after its last use until an upload is too old.
    """

    def __init__(self, keep: float) -> None:
        self._keep = keep
        self._hold = min(HOLD_SECONDS, keep)
        self._too_old_since: dict[str, float] = {}
        self._offset: float | None = None

    def expired(self, used_at: Mapping[str, int], wall: float, monotonic: float) -> list[str]:
        """Return the digests of the expired uploads.

        Args:
            used_at: the last use of each upload, in milliseconds since 1970.
            wall: the time, in seconds since 1970.
            monotonic: the seconds of a clock that can't be set.
        """
        offset, before = wall - monotonic, self._offset
        self._offset = offset
        if before is not None and was_set(before, offset):
            self._too_old_since.clear()
        oldest = (wall - self._keep) * 1000
        known = self._too_old_since
        self._too_old_since = {d: known.get(d, monotonic) for d, used in used_at.items() if used < oldest}
        return [digest for digest, since in self._too_old_since.items() if monotonic - since >= self._hold]
