"""Records of what counts against backends, and of the graphs that cost some."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BackendRecord:
    """The failures, ejections and orders that count against a backend.

    `poisoned` is the upstream id of the prompt that showed that the backend's process can't use its GPU. `failures` is
    JSON: for each failure in a row, the kind of work, and the backends that can do it. `ejections` counts ejections in
    a row; the last one ends at `ejected_until` (milliseconds since 1970). `drained` is 1 if an admin drains it.
    """

    backend: str
    poisoned: str | None
    failures: bytes
    ejections: int
    ejected_until: int
    drained: int


@dataclass(frozen=True, slots=True)
class PoisonousRecord:
    """A graph that left a backend's GPU unusable. `digest` is the graph's, `backends` a JSON list of names.

    Times are milliseconds since 1970. `remembered` is 1 once the graph is refused for its time. Until then it is a
    suspect, and `retry` is the prompt_id of the job that runs it once more. `shape` tells different graphs apart fast.
    """

    id: str
    tenant: str
    digest: bytes
    shape: str
    prompt_id: str
    node_id: str
    class_type: str
    error: str
    backends: bytes
    since: int
    until: int
    remembered: int
    retry: str


@dataclass(frozen=True, slots=True)
class PoisonousRemoval:
    """A poisonous graph that is forgotten."""

    id: str


@dataclass(frozen=True, slots=True)
class RestartRecord:
    """A backend's restarts of the last hour, as a JSON list of times (milliseconds since 1970), and its last one.

    An empty `outcome` means that the restart has begun and not ended.
    """

    backend: str
    attempts: bytes
    reason: str
    outcome: str
