"""The named workflows of all tenants: their names in memory, their graphs in the journal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.comfy import json_codec
from gateway.settings import WorkflowSettings
from gateway.store.protocol import Store, StoreDamaged
from gateway.store.workflow_records import WorkflowHead, WorkflowRecord, WorkflowRemoval
from gateway.tenants.stored_keys import durable
from gateway.workflows.model import Parameter, parameter_of


class TooManyWorkflows(Exception):
    """Refusal of a workflow, because the tenant has as many as it may have, or as many bytes. The text tells which."""


@dataclass(frozen=True, slots=True)
class Workflow:
    """A named workflow. `graph` is encoded. Times are milliseconds since 1970."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    graph: bytes
    created_at: int
    updated_at: int


class Workflows:
    """The named workflows. Call `restore` at the start."""

    def __init__(self, store: Store, settings: WorkflowSettings) -> None:
        self._store = store
        self._settings = settings
        self._known: dict[str, dict[str, WorkflowHead]] = {}
        self._one_at_a_time = asyncio.Lock()

    async def restore(self) -> None:
        """Read the names of all workflows.

        Raises:
            StoreError: the journal can't be read.
        """
        for head in await self._store.workflows():
            self._known.setdefault(head.tenant, {})[head.name] = head

    def has(self, tenant: str) -> bool:
        """Return True if a tenant has a workflow."""
        return tenant in self._known

    def of(self, tenant: str) -> list[WorkflowHead]:
        """Return a tenant's workflows by their names."""
        return sorted(self._known.get(tenant, {}).values(), key=lambda head: head.name)

    async def get(self, tenant: str, name: str) -> Workflow | None:
        """Return a workflow of a tenant; None if it has none of this name.

        Raises:
            StoreError: the journal can't be read.
        """
        if name not in self._known.get(tenant, {}):
            return None
        record = await self._store.workflow(tenant, name)
        if record is None:
            return None
        try:
            shown = json_codec.loads(record.parameters)
            parameters = tuple(parameter_of(each, shown[each]) for each in shown)
        except (json_codec.MalformedJson, LookupError, TypeError, ValueError) as error:
            raise StoreDamaged(f"the parameters of the workflow '{name}' are damaged; store it again") from error
        return Workflow(name, record.description, parameters, record.graph, record.created_at, record.updated_at)

    async def put(
        self, tenant: str, name: str, graph: bytes, parameters: Sequence[Parameter], description: str
    ) -> tuple[Workflow, bool]:
        """Store a workflow. Return it, and True if the tenant had none of this name.

        Raises:
            TooManyWorkflows: the tenant has too many, or too large ones.
            StoreError: the journal can't take it.
        """
        parameters = tuple(parameters)
        encoded = json_codec.dumps_exact({each.name: each.shown() for each in parameters})
        size, now = len(graph) + len(encoded), int(time.time() * 1000)
        async with self._one_at_a_time:
            own = self._known.get(tenant, {})
            before = own.get(name)
            self._check(own, name, size)
            made = now if before is None else before.created_at
            record = WorkflowRecord(tenant, name, description, encoded.decode(), graph, made, now)
            await self._store.try_write([record])
            head = WorkflowHead(tenant, name, description, size, made, now)
            self._known.setdefault(tenant, {})[name] = head
        return Workflow(name, description, parameters, graph, made, now), before is None

    def _check(self, own: dict[str, WorkflowHead], name: str, size: int) -> None:
        if name not in own and len(own) >= self._settings.max_count:
            raise TooManyWorkflows(
                f"there are {len(own)} workflows, as many as workflows.max_count allows; delete one, or raise it"
            )
        total = sum(head.size for head in own.values() if head.name != name) + size
        if total > self._settings.max_total:
            raise TooManyWorkflows(
                f"all workflows would have {total} bytes; at most {self._settings.max_total} are kept "
                "(workflows.max_total); delete one, or raise it"
            )

    async def delete(self, tenant: str, name: str) -> bool:
        """Delete a workflow. Return False if the tenant has none of this name.

        Raises:
            StoreError: the journal has not taken it yet.
        """
        async with self._one_at_a_time:
            own = self._known.get(tenant, {})
            if own.pop(name, None) is None:
                return False
            if not own:
                del self._known[tenant]
            written = self._store.write([WorkflowRemoval(tenant, name)])
        await durable(written, f"the workflow {name} is deleted")
        return True
