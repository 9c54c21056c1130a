"""Prompts of others in the queues of backends, as an admin sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

from gateway.comfy.responses import MARK
from gateway.fleet.backend import Backend
from gateway.jobs.scheduling.backend_prompts import extra_of
from gateway.jobs.state import partner_keys


def foreign_items(
    backends: Iterable[Backend], is_ours: Callable[[Backend, Sequence[Any]], bool]
) -> tuple[list[object], list[object]]:
    """Return the running and the pending prompts of others on backends, at the last probe."""
    having = [each for each in backends if each.foreign_running or each.foreign_pending]
    if not having:
        return [], []
    running = chain.from_iterable([(b, item) for item in b.queue.running] for b in having if b.pulse.alive)
    pending = chain.from_iterable([(b, item) for item in b.queue.pending] for b in having if b.pulse.alive)
    return (
        [_shown(item) for backend, item in running if not is_ours(backend, item)],
        [_shown(item) for backend, item in pending if not is_ours(backend, item)],
    )


def _shown(item: Sequence[Any]) -> Any:
    """Return a foreign item of a queue as an admin may see it: no partner keys, and no mark of another gateway."""
    extra = {key: value for key, value in extra_of(item).items() if key != MARK}
    return partner_keys.without([*item[:3], extra, *item[4:]] if extra_of(item) else list(item))
