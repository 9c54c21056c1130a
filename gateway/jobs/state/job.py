"""A job: one accepted prompt, from POST /prompt to its history entry."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from itertools import chain
from operator import itemgetter
from typing import Any

from gateway.comfy import json_codec
from gateway.comfy.events import Frame
from gateway.comfy.results import Sender
from gateway.jobs.isolation.judgement import Judged
from gateway.jobs.state.progress import Progress
from gateway.jobs.state.submission import Submission


class State(StrEnum):
    """Where a job is in its life."""

    ACCEPTED = "accepted"
    WAITING = "waiting"
    SENDING = "sending"
    PENDING = "pending"
    RUNNING = "running"
    COLLECTING = "collecting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


# In these a backend has it, or may have it.
PLACED = frozenset({State.SENDING, State.PENDING, State.RUNNING, State.COLLECTING})
# In these it counts as pending on its backend.
QUEUED_THERE = frozenset({State.SENDING, State.PENDING})
# In these a client sees it in queue_running.
SHOWN_RUNNING = frozenset({State.RUNNING, State.COLLECTING})
# Under these keys an admin is told whose a job is, and which backend ran it, or has it.
WHOSE = "gateway_tenant"
BACKEND = "gateway_backend"
ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})


# A larger item of /queue is put together each time: it is all that the job keeps, once more.
MAX_KEPT_ITEM = 64 * 1024
# Bytes that are sent in one piece.
PIECE = 256 * 1024


class Delivery(Enum):
    """Delivery of an assignment's prompt to its backend.

    NONE: certainly not. UNDER_WAY: its POST /prompt has no outcome yet. ARRIVED: it has it, or had.
    """

    NONE = auto()
    UNDER_WAY = auto()
    ARRIVED = auto()


@dataclass(slots=True, eq=False)
class Assignment:
    """One sending of a job to a backend. The ledger alone makes and changes it.

    `upstream_id` is the prompt's id on the backend, and known to no client. `mark` is the id that the gateway gave it,
    and goes upstream in its extra_data as well: a backend that is too old to honour the one gives an id of its own.
    `made_at` is seconds of the monotonic clock.
    """

    backend: str
    upstream_id: str
    mark: str
    delivery: Delivery = Delivery.NONE
    made_at: float = field(default_factory=time.monotonic)

    def translate(self, data: bytes, prompt_id: str) -> bytes:
        """Return what a backend says of the prompt in terms of the client's `prompt_id`."""
        own, mark, shown = self.upstream_id, self.mark, prompt_id.encode()
        data = data.replace(own.encode(), shown)
        return data if mark == own or not mark else data.replace(mark.encode(), shown)


@dataclass(slots=True)
class Live:
    """What its events said last: for sockets that connect late, and for its end.

    `before_end` is what has been said since the last ``executed``, that included: it may turn out to be the end. While
    it is `held` nobody has been told of it yet. `heard_at` is when the last one came: seconds of the monotonic clock.
    `cached` are the nodes whose results an earlier prompt left, None while its backend has not said. `added` are the
    nodes that the gateway added to its prompt there, each with its saver; `folders` are the secret folders that its
    savers write into. Both are None if that is not known since a restart.

    `turn` is its place among the jobs of which their clients know that they began: 0 for those of an earlier run of the
    gateway, None for one that has not begun. It `is_overtaken` once others' ends on its backend no longer wait for its
    own. `told` is the progress that its client knows of. `node` is the one that
    executes, `sender` the kind of the node that sent a picture last.
    """

    executing: Frame | None = None
    node: str | None = None
    sender: tuple[str, Sender] | None = None
    progress_state: Frame | None = None
    added: Mapping[str, str] | None = None
    folders: frozenset[str] | None = None
    terminal: tuple[str, dict[str, Any]] | None = None
    start_told: bool = False
    cached_told: bool = False
    turn: int | None = None
    is_overtaken: bool = False
    told: Progress | None = None
    cached: frozenset[str] | None = None
    held: bool = False
    before_end: list[Frame] = field(default_factory=list)
    heard_at: float = 0.0
    stall_said: bool = False
    oversized: int = 0


@dataclass(slots=True, eq=False)
class Job:
    """One job. The ledger alone changes `state`, `assignment`, `given_up` and the times.

    `number` is its place in its tenant's own order, `queue_key` its place in its backend's queue. `create_time` and
    `start_time` are milliseconds since 1970, as ComfyUI's; `accepted_at` and `started_at` seconds of the monotonic
    clock. `given_up` are its last assignments before this one that a backend may hold still. One that was
    `interrupted` is not sent again, should its backend be lost before it ends; nor is one that `has_entry`: it was
    fetched, and waits to be written. While it is `recalled` its backend is asked to give it back, so that its absence
    there is no loss; one that was `moved` stays where it is. `able` are the backends that can run it (None: all), as
    `judged_by`, a version of the catalogue, tells; `unfit` says why none may run it; to those that are `pinned` it is
    tied by its files, while their owner is down. Those it should `avoid` get it only if no other may; `retried_for`
    says for which failures it had its second chance, and `blamed` on which backend, by which error, it failed as if by
    the machine's fault. It is not sent `not_before` that time of the monotonic clock. It
    had so many `offers_again` after files were gone that had been put on its backend.
    """

    tenant: str
    prompt_id: str
    number: float
    queue_key: float
    submission: Submission
    create_time: int
    accepted_at: float
    state: State = State.ACCEPTED
    assignment: Assignment | None = None
    given_up: tuple[Assignment, ...] = ()
    start_time: int | None = None
    started_at: float | None = None
    placed_at: float = 0.0
    attempts: int = 0
    interrupted: bool = False
    recalled: bool = False
    moved: bool = False
    has_entry: bool = False
    node_errors: bytes = b"{}"
    outputs: list[str] = field(default_factory=list)
    pinned: frozenset[str] | None = None
    able: frozenset[str] | None = None
    judged_by: int | None = None
    judgement: Judged | None = None
    unfit: str | None = None
    avoid: frozenset[str] = frozenset()
    retried_for: frozenset[str] = frozenset()
    blamed: tuple[str, str] | None = None
    not_before: float = 0.0
    offers_again: int = 0
    live: Live = field(default_factory=Live)
    item: bytes | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What it is known by: an id belongs to its tenant."""
        return self.tenant, self.prompt_id

    @property
    def log_ids(self) -> dict[str, str | None]:
        """Return what each log line about it says: its id, and that of the request which brought it."""
        return {"prompt_id": self.prompt_id, "request_id": self.submission.request_id or None}

    @property
    def backend(self) -> str | None:
        """Return the backend that has it or may have it."""
        return self.assignment.backend if self.assignment is not None else None

    @property
    def upstream_id(self) -> str:
        """Return its id on its backend; empty while it has none."""
        return self.assignment.upstream_id if self.assignment is not None else ""

    def is_sent_by(self, assignment: Assignment) -> bool:
        """Return True while it is being sent so: it may be cancelled or given up meanwhile."""
        return self.state is State.SENDING and self.assignment is assignment

    def translate(self, data: bytes) -> bytes:
        """Return what its backend says of it in terms of its prompt_id."""
        if self.live.added:
            data = self.without_added(data)
        return self.assignment.translate(data, self.prompt_id) if self.assignment is not None else data

    def without_added(self, data: bytes) -> bytes:
        """Return JSON with the id of a saver in place of each node that was added for the saver's sake.

        The texts of errors may hold Python's form of the whole prompt.
        """
        for added, saver in (self.live.added or {}).items():
            data = data.replace(added.encode(), json_codec.dumps(saver)[1:-1])
        return data

    @property
    def is_ending(self) -> bool:
        """Whether it is being ended: its entry is here and waits for its turn, or is written without a run."""
        return self.has_entry or (self.pinned is not None and not self.pinned)

    @property
    def shown_number(self) -> bytes:
        """Its number as ComfyUI writes it: an integer, unless the client gave a number of its own (server.py)."""
        return number_json(self.number, self.submission.number is not None)

    def shown_extra_data(self) -> bytes:
        """extra_data as ComfyUI shows it: the client's own, then client_id and create_time (server.py, post_prompt)."""
        extra = self.submission.extra_data[:-1]
        comma = b"," if len(extra) > 1 else b""
        client = (
            b'"client_id":' + json_codec.dumps(self.submission.client_id) + b","
            if self.submission.gave_client_id
            else b""
        )
        return b'%b%b%b"create_time":%d}' % (extra, comma, client, self.create_time)

    def queue_item(self) -> bytes:
        """Its item of /queue, ``[number, prompt_id, prompt, extra_data, outputs]``; encoded once if it is short."""
        if self.item is not None:
            return self.item
        item = self._item(self.shown_extra_data())
        if len(item) <= MAX_KEPT_ITEM:
            self.item = item
        return item

    def queue_item_with_tenant(self) -> bytes:
        """The same for an admin: extra_data says whose it is."""
        return self._item(with_owner(self.shown_extra_data(), self.tenant, self.backend))

    def prompt_item(self, outputs: Any) -> bytes:
        """Return the same as its history entry has it: `outputs` are those that were executed."""
        return self._item(self.shown_extra_data(), outputs)

    def _item(self, extra_data: bytes, outputs: Any = None) -> bytes:
        executed = json_codec.dumps(self.outputs if outputs is None else outputs)
        parts = (self.shown_number, json_codec.dumps(self.prompt_id), self.submission.prompt, extra_data, executed)
        return b"[" + b",".join(parts) + b"]"

    def answer(self) -> bytes:
        """The answer to its POST /prompt."""
        return b'{"prompt_id": "%b", "number": %b, "node_errors": %b}' % (
            self.prompt_id.encode(),
            self.shown_number,
            self.node_errors,
        )


def with_owner(encoded: bytes, tenant: str, backend: str | None) -> bytes:
    """Return a JSON object, which is not empty, with a job's tenant and backend added, for an admin."""
    return encoded[:-1] + owner_of(tenant, backend)


def owner_of(tenant: str, backend: str | None) -> bytes:
    """Return what stands in the place of the last brace of a JSON object that tells a job's tenant and backend."""
    owner = {WHOSE: tenant, BACKEND: backend} if backend else {WHOSE: tenant}
    return b"," + json_codec.dumps(owner)[1:]


def number_json(number: float, is_float: bool) -> bytes:
    """A number as ComfyUI shows it."""
    return repr(float(number)).encode() if is_float else str(int(number)).encode()


def _in_turn(jobs: Iterable[Job]) -> list[Job]:
    """Return jobs in each tenant's own order, the first of all tenants first."""
    places: Counter[str] = Counter()
    turns: list[tuple[int, float, Job]] = []
    for job in sorted(jobs, key=lambda job: job.number):
        turns.append((places[job.tenant], job.accepted_at, job))
        places[job.tenant] += 1
    return [job for _, _, job in sorted(turns, key=itemgetter(0, 1))]


def queue_json(jobs: Iterable[Job], shown: Collection[Job]) -> bytes:
    """Return the body of /queue in one piece; see `queue_pieces`."""
    return b"".join(queue_pieces(jobs, shown))


def queue_pieces(
    jobs: Iterable[Job],
    shown: Collection[Job],
    running: Iterable[bytes] = (),
    pending: Iterable[bytes] = (),
    *,
    whose: bool = False,
) -> Iterator[bytes]:
    """Return the body of /queue piece by piece, because a long one can't be put together at once.

    Args:
        shown: the jobs that are shown as running; the others are pending, those that have begun before the rest.
        running: encoded items of others, which an admin sees too.
        pending: the same.
        whose: each item says whose it is.
    """
    item = Job.queue_item_with_tenant if whose else Job.queue_item
    rest = [job for job in jobs if job not in shown]
    begun = sorted((job for job in rest if job.state in SHOWN_RUNNING), key=lambda job: job.live.turn or math.inf)
    waits = begun + _in_turn(job for job in rest if job.state not in SHOWN_RUNNING)
    yield b'{"queue_running": ['
    yield from _joined(chain(map(item, shown), running))
    yield b'], "queue_pending": ['
    yield from _joined(chain(map(item, waits), pending))
    yield b"]}"


def _joined(items: Iterable[bytes]) -> Iterator[bytes]:
    for n, item in enumerate(items):
        if n:
            yield b", "
        if len(item) <= PIECE:
            yield item
        else:
            yield from (item[start : start + PIECE] for start in range(0, len(item), PIECE))
