"""Decision about the backend that a write to a custom node's route is for. Pure.

A prompt_id counts before all else, then the id of a state, then an id of a node, then a text of a prompt. If they lead
to several backends, or to none while several may be meant, the write has no owner: it must not be guessed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum


class Unclear(StrEnum):
    """Reason why a write has no owner. SEVERAL: more than one backend may be meant. WAITING: no backend has it yet."""

    SEVERAL = "several"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A tenant's open job, as far as the decision goes.

    Attributes:
        backend: the backend that has it; None if it waits in the gateway.
        executing: the id of the node that it executes.
        heard: ids that its custom nodes told.
    """

    prompt_id: str
    backend: str | None
    is_running: bool
    executing: str | None = None
    heard: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Owner:
    """Backend that a write is for, and the prompt that it names, if it names one."""

    backend: str
    prompt_id: str | None = None


def named_owner(
    ids: Collection[str], jobs: Collection[OpenJob], bound: Mapping[str, str], texts: Collection[str] = ()
) -> Owner | Unclear | None:
    """Return the owner of a write by the ids that it names; None if they name nothing of the tenant's.

    Args:
        ids: the ids that it names.
        jobs: the tenant's open jobs.
        bound: by id, the backend that keeps a state of the tenant's under it.
        texts: the backends of jobs whose prompts have one of the ids as a text.
    """
    named = [job for job in jobs if job.prompt_id in ids]
    if named:
        places = {job.backend for job in named}
        if len(places) > 1:
            return Unclear.SEVERAL
        place = places.pop()
        return Unclear.WAITING if place is None else Owner(place, named[0].prompt_id if len(named) == 1 else None)
    running = [job for job in jobs if job.is_running and job.backend is not None]
    for backends in (
        {bound[each] for each in ids if each in bound},
        {job.backend for job in running if job.executing is not None and job.executing in ids},
        {job.backend for job in running if any(each in job.heard for each in ids)},
        set(texts),
    ):
        if backends:
            return _only(backends)
    return None


def unnamed_owner(jobs: Iterable[OpenJob], usable: Collection[str]) -> Owner | Unclear | None:
    """Return the owner of a write that names nothing: where the tenant's jobs run; None if none runs.

    Args:
        jobs: the tenant's open jobs.
        usable: the backends that the tenant may use.
    """
    running = {job.backend for job in jobs if job.is_running and job.backend in usable}
    return _only(running) if running else None


def _only(backends: Collection[str | None]) -> Owner | Unclear:
    found = [each for each in backends if each is not None]
    return Owner(found[0]) if len(found) == 1 else Unclear.SEVERAL
