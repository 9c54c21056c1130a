"""Put the parts of routing together, by the settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway.fleet.fleet import Fleet
from gateway.jobs.admission.admission import Admission
from gateway.jobs.files.inputs import Inputs
from gateway.jobs.routing.policies.registry import POLICIES
from gateway.jobs.scheduling.candidates import Candidates
from gateway.jobs.scheduling.etas import Etas
from gateway.jobs.scheduling.fleet_board import FleetBoard
from gateway.jobs.scheduling.fleet_load import FleetLoad
from gateway.jobs.scheduling.late_binding import LateBinding
from gateway.jobs.scheduling.learning import Learning
from gateway.jobs.state.job import Job
from gateway.jobs.state.ledger import Ledger
from gateway.settings import RoutingSettings
from gateway.telemetry.metrics import Metrics
from gateway.tenants.limits import Limits
from gateway.tenants.policy import Policies


@dataclass(frozen=True, slots=True)
class Routing:
    """Parts of routing.

    Attributes:
        learning: what runs have told.
        board: the backends as policies see them.
        candidates: the choice of a backend for a job that is bound at once.
        late: the waiting jobs that are bound late; None if no tenant has such a policy.
        etas: the expected times of open jobs.
    """

    learning: Learning
    board: FleetBoard
    candidates: Candidates
    late: LateBinding | None
    etas: Etas


def make_routing(
    settings: RoutingSettings,
    ledger: Ledger,
    fleet: Fleet,
    inputs: Inputs,
    admission: Admission,
    learning: Learning,
    limits: Limits,
    policies: Policies,
    is_alone: Callable[[str], bool],
    is_apart: Callable[[str], bool],
    metrics: Metrics,
) -> Routing:
    """Return the parts of routing, connected with each other and with the ledger.

    Args:
        is_alone: returns True if no tenant but this one may come.
        is_apart: returns True if a tenant shares the fleet with strangers.
    """
    late_names = {name for name, make in POLICIES.items() if make().binds_late}
    used = {settings.policy, *(each.routing for each in policies.all)}

    def policy_of(tenant: str) -> str:
        return policies.of(tenant).routing or settings.policy

    def is_late(job: Job) -> bool:
        return policy_of(job.tenant) in late_names and not job.submission.is_interactive

    learning.expect_speeds({entry.name: entry.weight for entry in fleet.configured})
    has_late = bool(used & late_names)
    board = FleetBoard(ledger, fleet, learning, settings.ahead, is_late if has_late else None)

    def may_go(tenant: str) -> bool:
        return not limits.bounds_running or limits.may_run_more(tenant, ledger.placed_count(tenant))

    late = None
    if has_late:
        late = LateBinding(
            *(ledger, fleet, learning, board, settings, ledger.share, is_late, admission.refresh_able, may_go)
        )
    candidates = Candidates(ledger, fleet, inputs, limits, learning, board, late, policy_of, is_alone)
    ledger.share.weight = lambda tenant: policies.of(tenant).weight
    ledger.share.priority_seconds = settings.priority_seconds
    ledger.seconds_of = learning.usual_seconds
    ledger.steps.arrived = learning.arrived
    learning.on_learned = board.changed
    # If it came before the others, they would take its hooks from the ledger.
    load = FleetLoad(ledger, fleet, learning, is_apart)
    etas = Etas(ledger, fleet, learning, board, late, load, metrics)
    return Routing(learning, board, candidates, late, etas)
