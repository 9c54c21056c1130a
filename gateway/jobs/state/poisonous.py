"""Memory of poisonous graphs: a run of one left a backend's GPU unusable, so the same graph must not cost another.

The key is a tenant and the exact graph. No other tenant is affected, or can find out. After the first backend the graph
is a suspect: one job runs it once more, elsewhere, and the tenant's other jobs with this graph wait for the outcome. If
that job succeeds, the machine was at fault, and the suspicion is dropped. If a second backend is lost to the graph, or
no other backend could try it, the graph is remembered: prompts with it are refused, and waiting jobs with it end.

All times are seconds since 1970, passed in. While a tenant has no poisonous graph, no digest of a prompt is computed.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from gateway.comfy import json_codec
from gateway.comfy.errors import error_body
from gateway.jobs.state.job import Job
from gateway.jobs.state.prompt_bounds import Rejection
from gateway.jobs.state.submission import Submission
from gateway.store.backend_records import PoisonousRecord, PoisonousRemoval
from gateway.store.protocol import Store
from gateway.telemetry import logs
from gateway.telemetry.times import iso

_log = logs.get("poison")

# Maximum number of graphs that are remembered, of all tenants together; the oldest go first.
MAX_GRAPHS = 1_000
MAX_TEXT = 300
# Maximum bytes of a graph whose keys are sorted.
MAX_SORTED = 256 * 1024
_MESSAGE = "This graph left a GPU unusable, so it does not run again for a time"


@dataclass(frozen=True, slots=True)
class PoisonousGraph:
    """A poisonous graph of a tenant. `record` is what the journal keeps of it."""

    record: PoisonousRecord
    backends: tuple[str, ...]

    @property
    def is_remembered(self) -> bool:
        """Return True if the graph is refused until its time is over; False while it is a suspect."""
        return bool(self.record.remembered)

    @property
    def until(self) -> str:
        """Return the time until which the graph is refused, in UTC."""
        return iso(self.record.until / 1000)

    def describe(self) -> dict[str, Any]:
        """Return the description for the admin API."""
        record = self.record
        return {
            "id": record.id,
            "tenant": record.tenant,
            "digest": record.digest.hex(),
            "state": "remembered" if self.is_remembered else "suspect",
            "since": iso(record.since / 1000),
            "until": self.until,
            "prompt_id": record.prompt_id,
            "node_id": record.node_id or None,
            "class_type": record.class_type or None,
            "error": record.error,
            "backends": list(self.backends),
        }

    def sentence(self) -> str:
        """Return for the graph's tenant: the prompt and node that it happened at, the end, and the remedy."""
        record = self.record
        node = f" at node #{record.node_id}" if record.node_id else ""
        node += f" ({record.class_type})" if record.class_type else ""
        happened = f"prompt {record.prompt_id} with exactly this graph ended{node} with an error after which a GPU has"
        happened += " to be restarted"
        forget = f"an admin can forget it sooner: DELETE /gateway/poisonous/{record.id}"
        if self.is_remembered:
            return f"{happened}; the graph is refused until {self.until}; {forget}; a changed graph is accepted"
        return (
            f"{happened}; it runs once more on another GPU, and the same graph is refused until that has ended, at the "
            f"latest until {self.until}; {forget}"
        )

    def refusal(self) -> Rejection:
        """Return the 400 in ComfyUI's form, at the node if the graph has it."""
        record, told = self.record, self.sentence()
        extra = {"id": record.id, "until": self.until, "prompt_id": record.prompt_id}
        nodes: dict[str, Any] = {}
        if record.class_type:
            extra |= {"node_id": record.node_id, "class_type": record.class_type}
            error = {"type": "graph_refused", "message": _MESSAGE, "details": told, "extra_info": {}}
            own = {"errors": [error], "dependent_outputs": [], "class_type": record.class_type}
            nodes = {record.node_id: own}
        return Rejection(400, error_body("graph_refused", _MESSAGE, told, extra, nodes))


def shape_of(submission: Submission) -> str:
    """Return a text that differs for most different graphs, and takes no parsing."""
    return f"{len(submission.nodes)}:{sum(len(class_type) for _, class_type in submission.nodes)}"


def digest_of(submission: Submission) -> bytes:
    """Return the digest of a graph, which does not depend on the order of its keys.

    A large graph is compared in the order in which it was sent, because parsing one would hold the event loop.
    """
    if len(submission.prompt) > MAX_SORTED:
        return hashlib.blake2b(submission.prompt, digest_size=32).digest()
    return hashlib.sha256(json_codec.dumps_sorted(submission.graph())).digest()


class PoisonousGraphs:
    """The poisonous graphs of all tenants.

    Args:
        seconds: time for which a graph is remembered; 0: none is.
        is_open: returns True while a tenant's job has not ended.
    """

    def __init__(self, store: Store, seconds: float, is_open: Callable[[str, str], bool]) -> None:
        self._store = store
        self._seconds = seconds
        self._is_open = is_open
        self._graphs: dict[str, PoisonousGraph] = {}
        self._tenants: dict[str, dict[bytes, str]] = {}
        self._shapes: dict[str, set[str]] = {}
        # True if waiting jobs must be looked at, because a graph is remembered anew.
        self.has_news = False

    def __len__(self) -> int:
        return len(self._graphs)

    async def restore(self, now: float) -> None:
        """Read the graphs from the journal. Drop those whose time is over, and all if none is to be remembered."""
        for record in await self._store.poisonous():
            if self._seconds == 0 or record.until <= now * 1000:
                self._store.write([PoisonousRemoval(record.id)])
            else:
                self._keep(record)

    def restore_job(self, job: Job) -> None:
        """Let a restored job that is a suspect's retry avoid the backends that the graph has cost already."""
        if (graph := self._of(job.tenant, job.submission, job)) is not None:
            job.avoid |= frozenset(graph.backends)

    # -- asking --------------------------------------------------------------------------------------------------

    def all(self, now: float) -> list[PoisonousGraph]:
        """Return all graphs, the oldest first."""
        self.expire(now)
        return list(self._graphs.values())

    def find(self, job: Job) -> PoisonousGraph | None:
        """Return a job's graph if it is poisonous."""
        return self._of(job.tenant, job.submission, job) if job.tenant in self._tenants else None

    def check(self, tenant: str, submission: Submission, now: float) -> bool:
        """Return True if a new prompt may run as a suspect's one retry; False if its graph is not known.

        Raises:
            Rejection: its graph is refused.
        """
        if tenant not in self._tenants:
            return False
        self.expire(now)
        graph = self._of(tenant, submission)
        if graph is None:
            return False
        if graph.is_remembered or self._is_open(tenant, graph.record.retry):
            raise graph.refusal()
        return True

    def is_held(self, job: Job) -> bool:
        """Return True if a job must not be sent, because another job decides about its graph, or none may run it."""
        graph = self.find(job)
        if graph is None:
            return False
        retry = graph.record.retry
        return graph.is_remembered or (retry != job.prompt_id and self._is_open(job.tenant, retry))

    def end_of(self, job: Job) -> tuple[str, str] | None:
        """Return why a job must end, and the error's type; None if its graph is not remembered."""
        graph = self.find(job)
        return (graph.sentence(), "GraphRefused") if graph is not None and graph.is_remembered else None

    def look_cost(self, job: Job) -> int:
        """Return about how many microseconds it takes to look a job's graph up."""
        if job.graph_digest is not None or shape_of(job.submission) not in self._shapes.get(job.tenant, ()):
            # Without a digest to make, a look takes no time to speak of. If it seemed to, each turn would begin anew.
            return 0
        return 20 + len(job.submission.prompt) // 300

    # -- what happens --------------------------------------------------------------------------------------------

    def sent(self, job: Job) -> None:
        """Note that a job goes to a backend: if its graph is a suspect without a retry, the job is the retry."""
        graph = self.find(job)
        if graph is not None and not graph.is_remembered and graph.record.retry != job.prompt_id:
            self._keep(replace(graph.record, retry=job.prompt_id), write=True)

    def poisoned(self, job: Job, backend: str, error: str, node_id: str, now: float, *, has_other: bool) -> None:
        """Note that a job's graph cost a backend.

        Args:
            has_other: True if another backend may run the graph.
        """
        if self._seconds == 0:
            return
        self.expire(now)
        known = self._of(job.tenant, job.submission, job, is_new=True)
        backends = (*(known.backends if known is not None else ()), backend)[-MAX_GRAPHS:]
        is_remembered = known is not None or not has_other
        class_type = dict(job.submission.nodes).get(node_id, "")[:MAX_TEXT]
        assert job.graph_digest is not None
        record = PoisonousRecord(
            id=known.record.id if known is not None else secrets.token_hex(8),
            tenant=job.tenant,
            digest=job.graph_digest,
            shape=shape_of(job.submission),
            prompt_id=job.prompt_id,
            node_id=node_id[:MAX_TEXT],
            class_type=class_type,
            error=error[:MAX_TEXT],
            backends=json_codec.dumps(list(dict.fromkeys(backends))),
            since=known.record.since if known is not None else int(now * 1000),
            until=int((now + self._seconds) * 1000),
            remembered=int(is_remembered),
            retry=job.prompt_id,
        )
        self._keep(record, write=True)
        self.has_news = self.has_news or is_remembered
        node = {"node_id": record.node_id or None, "node_type": class_type or None}
        about = {**job.log_ids, "tenant": job.tenant, "backend": backend, "graph": record.id, **node}
        if is_remembered:
            _log.error("graph_remembered", **about, until=iso(record.until / 1000))
        else:
            _log.warning("graph_suspected", **about)
        while len(self._graphs) > MAX_GRAPHS:
            self.forget(next(iter(self._graphs)))

    def succeeded(self, job: Job) -> None:
        """Note that a job ended well on a backend that is sound: a suspicion against its graph is dropped."""
        graph = self.find(job)
        if graph is not None and not graph.is_remembered:
            _log.info("graph_cleared", **job.log_ids, tenant=job.tenant, graph=graph.record.id)
            self.forget(graph.record.id)

    def forget(self, id_: str) -> PoisonousGraph | None:
        """Forget a graph, and return it; None if there is none by this id."""
        graph = self._graphs.pop(id_, None)
        if graph is None:
            return None
        tenant = graph.record.tenant
        own = self._tenants[tenant]
        own.pop(graph.record.digest, None)
        if own:
            self._shapes[tenant] = {self._graphs[each].record.shape for each in own.values()}
        else:
            del self._tenants[tenant], self._shapes[tenant]
        self._store.write([PoisonousRemoval(id_)])
        return graph

    def expire(self, now: float) -> None:
        """Forget the graphs whose time is over."""
        over = [id_ for id_, graph in self._graphs.items() if graph.record.until <= now * 1000]
        for id_ in over:
            self.forget(id_)

    # -- bookkeeping ---------------------------------------------------------------------------------------------

    def _of(
        self, tenant: str, submission: Submission, job: Job | None = None, *, is_new: bool = False
    ) -> PoisonousGraph | None:
        digest = job.graph_digest if job is not None else None
        if digest is None:
            if not is_new and shape_of(submission) not in self._shapes.get(tenant, ()):
                return None
            digest = digest_of(submission)
            if job is not None:
                job.graph_digest = digest
        id_ = self._tenants.get(tenant, {}).get(digest)
        return self._graphs[id_] if id_ is not None else None

    def _keep(self, record: PoisonousRecord, *, write: bool = False) -> None:
        backends = tuple(str(each) for each in json_codec.loads(record.backends))
        self._graphs[record.id] = PoisonousGraph(record, backends)
        self._tenants.setdefault(record.tenant, {})[record.digest] = record.id
        self._shapes.setdefault(record.tenant, set()).add(record.shape)
        if write:
            self._store.write([record])
