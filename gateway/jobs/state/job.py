"""A job: one accepted prompt, from POST /prompt to its history entry."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import chain
from operator import itemgetter
from typing import Any

from gateway.comfy import json_codec
from gateway.comfy.events import Frame
from gateway.comfy.results import Sender
from gateway.jobs.isolation.judgement import FleetJudgement
from gateway.jobs.routing.eta import Shown
from gateway.jobs.routing.times import RunKind
from gateway.jobs.state.progress import Progress
from gateway.jobs.state.submission import Submission
from gateway.jobs.state.transitions import SHOWN_RUNNING, State

# Keys under which an admin sees a job's tenant, and the backend that has it or ran it.
WHOSE = "gateway_tenant"
BACKEND = "gateway_backend"
ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})


# Expected seconds of a job's run while nothing is learned.
USUAL_SECONDS = 10.0
# A larger item of /queue is encoded each time, because a kept one would double the job's memory.
MAX_KEPT_ITEM = 64 * 1024
# Ids that a job's custom nodes told.
MAX_HEARD_IDS = 64
# Bytes of the results that a running job keeps for those who look at it. Its history entry has all.
MAX_RESULTS = 256 * 1024
# Bytes that are sent in one piece.
PIECE = 256 * 1024


class Delivery(Enum):
    """Delivery of an assignment's prompt to its backend.

    NONE: not sent, or the backend does not have it. UNDER_WAY: POST /prompt has no outcome yet. ARRIVED: the backend
    has it, or had it.
    """

    NONE = auto()
    UNDER_WAY = auto()
    ARRIVED = auto()


@dataclass(slots=True, eq=False)
class Assignment:
    """Assignment of a job to a backend. The ledger alone makes and changes it.

    `upstream_id` is the prompt's id on the backend; no client knows it. `mark` is the id that the gateway gave the
    prompt. It goes upstream in extra_data, too, because a backend too old to honour it gives an id of its own.
    `made_at` is seconds of the monotonic clock.
    """

    backend: str
    upstream_id: str
    mark: str
    delivery: Delivery = Delivery.NONE
    made_at: float = field(default_factory=time.monotonic)

    def translate(self, data: bytes, prompt_id: str) -> bytes:
        """Return a backend's data with the client's `prompt_id` in place of the upstream id and the mark."""
        own, mark, shown = self.upstream_id, self.mark, prompt_id.encode()
        data = data.replace(own.encode(), shown)
        return data if mark == own or not mark else data.replace(mark.encode(), shown)


@dataclass(slots=True, eq=False, weakref_slot=True)
class LastPreview:
    """The last picture that a running job showed: its node, its type, and its bytes behind the frame's head.

    `encoded` is the picture in another form, once somebody has made that.
    """

    node_id: str
    content_type: str
    frame: bytes
    start: int
    encoded: bytes = b""


@dataclass(slots=True)
class Live:
    """State of a job's events, for sockets that connect late, and for the job's end.

    `before_end` holds the frames since the last ``executed``, that one included, because it may be the last of all.
    While the job is `held`, its client events wait for the answer to its POST /prompt, or for another job's end.
    `heard_at` is the time of the last event, in seconds of the monotonic clock. `cached` are the nodes whose results an
    earlier prompt left, and `run_kind` is what they tell of the run; both are None until the backend says so. `added`
    are the nodes that the gateway added to the prompt, each with its saver. `folders` are the secret folders into which
    its savers write. Both are None if unknown since a restart.

    `turn` is the job's position among the jobs whose clients know that they began: 0 for a job of an earlier run of
    the gateway, None for a job that has not begun. A job `is_overtaken` once other jobs on its backend may end before
    it. `told` is the progress that its client knows. `node` is the executing node, `sender` the kind of the node that
    sent the last picture. `ids` are those that its custom nodes told, the newest. `results` are its last ``executed``
    events, with the names that its client knows, as far as they are short. `preview` is the last picture that it
    showed. `savers` are the digests of its output nodes, as far as they were needed
    (`gateway/jobs/files/result_names.py`).
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
    run_kind: RunKind | None = None
    held: bool = False
    before_end: list[Frame] = field(default_factory=list)
    heard_at: float = 0.0
    stall_said: bool = False
    oversized: int = 0
    ids: dict[str, None] = field(default_factory=dict)
    results: list[bytes] = field(default_factory=list)
    results_size: int = 0
    preview: LastPreview | None = None
    savers: dict[str, str] = field(default_factory=dict)

    def hear_result(self, payload: bytes) -> None:
        """Keep an ``executed`` event, if there is room for it."""
        if self.results_size + len(payload) <= MAX_RESULTS:
            self.results.append(payload)
            self.results_size += len(payload)

    def hear_ids(self, ids: Iterable[str]) -> None:
        """Keep ids that a custom node told, `MAX_HEARD_IDS` at most."""
        for each in ids:
            self.ids.pop(each, None)
            self.ids[each] = None
        while len(self.ids) > MAX_HEARD_IDS:
            del self.ids[next(iter(self.ids))]


@dataclass(slots=True, eq=False)
class Job:
    """Accepted prompt and its state. The ledger alone changes `state`, `assignment`, `given_up` and the times.

    Order: `number` orders the jobs of a tenant, `queue_key` those of a backend. Times: `create_time` and `start_time`
    are milliseconds since 1970, as ComfyUI's; `accepted_at` and `started_at` are seconds of the monotonic clock. The
    job is not sent before `not_before` on that clock. `expected_seconds` are those of its run at usual speed, as
    known when it came or was last sent. `charged` are those that its tenant's share was charged for it so far.
    `accepted_eta` is what its client was shown when the job was accepted; None after a restart.

    Assignments: `given_up` are former ones whose backends may still have the prompt. While the job is `recalled`, its
    backend is asked to give it back, so that its absence there is no loss. A job that was `moved` once is not moved
    again. If a backend is lost, a job that was `interrupted`, or that `has_entry`, is not sent again. `has_entry` means
    that the entry is fetched, and waits to be written.

    Choice of a backend: `able` are the backends that can run the job (None: all) by version `judged_by` of the
    catalogue. `unfit` is the reason why none may run it. The job goes to a `pinned` backend alone, because that one
    holds its files and was down; if `pinned` is empty, the job is ending. It goes to a backend in `avoid` only if no
    other may have it, and to none in `lacking`, because these lack a node class or a choice of it.

    Failures: `retried_for` are the causes for which it was retried. `blamed` is a backend and an error, if the job
    failed there as if by the machine's fault. `offers_again` counts offers after files were gone from the backend.
    `graph_digest` is known once the graph was compared with poisonous ones (`poisonous.py`).
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
    judgement: FleetJudgement | None = None
    unfit: str | None = None
    avoid: frozenset[str] = frozenset()
    lacking: frozenset[str] = frozenset()
    retried_for: frozenset[str] = frozenset()
    blamed: tuple[str, str] | None = None
    not_before: float = 0.0
    offers_again: int = 0
    graph_digest: bytes | None = None
    live: Live = field(default_factory=Live)
    item: bytes | None = None
    expected_seconds: float = USUAL_SECONDS
    charged: float = 0.0
    accepted_eta: Shown | None = None

    @property
    def priority(self) -> int:
        """Return the priority that the job's client asked for."""
        return self.submission.priority

    @property
    def key(self) -> tuple[str, str]:
        """Return the job's key: tenant and prompt_id, because an id is unique in its tenant alone."""
        return self.tenant, self.prompt_id

    @property
    def log_ids(self) -> dict[str, str | None]:
        """Return the ids for log lines about the job: its own, and its request's."""
        return {"prompt_id": self.prompt_id, "request_id": self.submission.request_id or None}

    @property
    def backend(self) -> str | None:
        """Return the name of the backend that has the job or may have it."""
        return self.assignment.backend if self.assignment is not None else None

    @property
    def upstream_id(self) -> str:
        """Return the job's id on its backend; empty if the job has no assignment."""
        return self.assignment.upstream_id if self.assignment is not None else ""

    def is_sent_by(self, assignment: Assignment) -> bool:
        """Return True while the job is being sent by this assignment: not cancelled or given up meanwhile."""
        return self.state is State.SENDING and self.assignment is assignment

    def translate(self, data: bytes) -> bytes:
        """Return its backend's data in the client's terms: with its prompt_id, and without added nodes."""
        if self.live.added:
            data = self.without_added(data)
        return self.assignment.translate(data, self.prompt_id) if self.assignment is not None else data

    def without_added(self, data: bytes) -> bytes:
        """Return JSON with the saver's id in place of the id of each node that the gateway added for it.

        All bytes are searched, because the text of an error may hold Python's form of the whole prompt.
        """
        for added, saver in (self.live.added or {}).items():
            data = data.replace(added.encode(), json_codec.dumps(saver)[1:-1])
        return data

    @property
    def is_ending(self) -> bool:
        """Return True if the job is ending: its entry is fetched, or an entry without a run is being written."""
        return self.has_entry or (self.pinned is not None and not self.pinned)

    @property
    def shown_number(self) -> bytes:
        """Return the number as ComfyUI writes it: an integer, unless the client gave a number (server.py)."""
        return number_json(self.number, self.submission.number is not None)

    def shown_extra_data(self) -> bytes:
        """Return extra_data as ComfyUI does: the client's, then client_id and create_time (server.py, post_prompt)."""
        extra = self.submission.extra_data[:-1]
        comma = b"," if len(extra) > 1 else b""
        client = (
            b'"client_id":' + json_codec.dumps(self.submission.client_id) + b","
            if self.submission.gave_client_id
            else b""
        )
        return b'%b%b%b"create_time":%d}' % (extra, comma, client, self.create_time)

    def queue_item(self) -> bytes:
        """Return the item of /queue: ``[number, prompt_id, prompt, extra_data, outputs]``. Keep it if it is short."""
        if self.item is not None:
            return self.item
        item = self._item(self.shown_extra_data())
        if len(item) <= MAX_KEPT_ITEM:
            self.item = item
        return item

    def queue_item_with_tenant(self) -> bytes:
        """Return the item of /queue for an admin: extra_data has the tenant and the backend."""
        return self._item(with_owner(self.shown_extra_data(), self.tenant, self.backend))

    def prompt_item(self, outputs: Any) -> bytes:
        """Return the item as the history entry has it: `outputs` are the executed ones."""
        return self._item(self.shown_extra_data(), outputs)

    def _item(self, extra_data: bytes, outputs: Any = None) -> bytes:
        executed = json_codec.dumps(self.outputs if outputs is None else outputs)
        parts = (self.shown_number, json_codec.dumps(self.prompt_id), self.submission.prompt, extra_data, executed)
        return b"[" + b",".join(parts) + b"]"

    def answer(self) -> bytes:
        """Return the body of the response to POST /prompt."""
        return b'{"prompt_id": "%b", "number": %b, "node_errors": %b}' % (
            self.prompt_id.encode(),
            self.shown_number,
            self.node_errors,
        )


def with_owner(encoded: bytes, tenant: str, backend: str | None) -> bytes:
    """Return a non-empty JSON object with a job's tenant and backend added, for an admin."""
    return encoded[:-1] + owner_of(tenant, backend)


def owner_of(tenant: str, backend: str | None) -> bytes:
    """Return bytes that replace the last brace of a JSON object, to add a job's tenant and backend."""
    owner = {WHOSE: tenant, BACKEND: backend} if backend else {WHOSE: tenant}
    return b"," + json_codec.dumps(owner)[1:]


def number_json(number: float, is_float: bool) -> bytes:
    """Return a number as ComfyUI shows it."""
    return repr(float(number)).encode() if is_float else str(int(number)).encode()


def _in_turn(jobs: Iterable[Job]) -> list[Job]:
    """Return jobs in rounds: each tenant's first job, then each tenant's second, and so on."""
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
        shown: the jobs that are shown as running. The others are pending, begun jobs before the rest.
        running: more encoded items of queue_running, which an admin sees.
        pending: more encoded items of queue_pending.
        whose: if True, each item has its tenant and backend.
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
