"""SQL of named workflows. PostgreSQL takes the same statements, with its own marks for parameters."""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from operator import attrgetter

from gateway.store.workflow_records import WorkflowChange, WorkflowHead, WorkflowRecord, WorkflowRemoval

_COLUMNS = "tenant, name, description, parameters, graph, created_at, updated_at"

# The graph is counted in bytes, and so are the parameters.
WORKFLOWS = """SELECT tenant, name, description, length(graph) + length(CAST(parameters AS BLOB)), created_at,
updated_at FROM workflows ORDER BY tenant, name"""
WORKFLOW = f"SELECT {_COLUMNS} FROM workflows WHERE tenant=? AND name=?"
_PUT = f"""INSERT INTO workflows ({_COLUMNS}) VALUES (?,?,?,?,?,?,?)
ON CONFLICT (tenant, name) DO UPDATE SET description=excluded.description, parameters=excluded.parameters,
graph=excluded.graph, updated_at=excluded.updated_at"""
_DROP = "DELETE FROM workflows WHERE tenant=? AND name=?"

_row = attrgetter(*_COLUMNS.split(", "))


def apply(connection: sqlite3.Connection, change: WorkflowChange) -> None:
    """Make a change, within the transaction that is open."""
    match change:
        case WorkflowRecord():
            connection.execute(_PUT, _row(change))
        case WorkflowRemoval(tenant, name):
            connection.execute(_DROP, (tenant, name))


class WorkflowRows(ABC):
    """The reads of a store of SQL, for named workflows."""

    @abstractmethod
    async def _rows(self, sql: str, parameters: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
        """Return the rows of a query."""

    async def workflows(self) -> list[WorkflowHead]:
        """Return all named workflows without their graphs."""
        return [WorkflowHead(*row) for row in await self._rows(WORKFLOWS)]  # type: ignore[arg-type]

    async def workflow(self, tenant: str, name: str) -> WorkflowRecord | None:
        """Return a named workflow; None if there is none."""
        rows = await self._rows(WORKFLOW, (tenant, name))
        return WorkflowRecord(*rows[0]) if rows else None  # type: ignore[arg-type]
