"""Records of named workflows. Times are milliseconds since 1970."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class WorkflowRecord:
    """A named workflow, new or changed. `parameters` is JSON, `graph` the encoded graph."""

    tenant: str
    name: str
    description: str
    parameters: str = field(repr=False)
    graph: bytes = field(repr=False)
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class WorkflowHead:
    """A named workflow without its graph; `size` are the bytes of graph and parameters."""

    tenant: str
    name: str
    description: str
    size: int
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class WorkflowRemoval:
    """A named workflow that was deleted."""

    tenant: str
    name: str


WorkflowChange = WorkflowRecord | WorkflowRemoval


class WorkflowReads(Protocol):
    """The reads of a store that named workflows need."""

    async def workflows(self) -> list[WorkflowHead]:
        """Return all named workflows without their graphs."""

    async def workflow(self, tenant: str, name: str) -> WorkflowRecord | None:
        """Return a named workflow; None if there is none."""
