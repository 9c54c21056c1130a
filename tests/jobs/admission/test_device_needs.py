"""Which backends' devices suit a job, as they come, go and change."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.comfy.responses import SystemStats
from gateway.fleet.backend import Backend
from gateway.fleet.health import Pulse
from gateway.jobs.admission.device_needs import DeviceNeeds
from gateway.jobs.routing.out_of_memory import OutOfMemory
from gateway.jobs.routing.requirements import GIB, parse_requirement
from gateway.jobs.state.prompt_bounds import Rejection
from gateway.jobs.state.submission import Submission, read
from gateway.settings import BackendSettings, TenantSettings
from gateway.tenants.policy import Policies

PROMPT = read(b'{"prompt": {"1": {"class_type": "X", "inputs": {}}}}')


class World:
    """Three backends, and the judge of their devices. They tell nothing yet."""

    def __init__(self, tenants: dict[str, Any] | None = None) -> None:
        names = ("b1", "b2", "b3")
        entries = [BackendSettings(url="http://127.0.0.1:1", name=name, labels=("eu",)) for name in names]
        unused: Any = None
        self.backends = {
            name: Backend(name, "", 4, False, unused, Pulse(30.0, time.monotonic()), connected=True) for name in names
        }
        fleet: Any = SimpleNamespace(backends=self.backends, configured=entries)
        self.memory = OutOfMemory()
        policies = Policies(TenantSettings.model_validate(tenants or {}), entries)
        self.needs = DeviceNeeds(fleet, policies, self.memory)

    def tell(self, name: str, vram: float, kind: str = "cuda") -> None:
        """Let a backend answer a probe: it is up, and its GPU has so many GiB."""
        backend = self.backends[name]
        backend.pulse.answered(time.monotonic())
        device = {"type": kind, "vram_total": int(vram * GIB)}
        backend.stats = SystemStats({"system": {}, "devices": [{"type": "cuda", "vram_total": 1}, device]})
        self.needs.measured(backend)

    def among(self, tenant: str = "anna", submission: Submission = PROMPT) -> set[str] | None:
        """The backends for a prompt; None for all."""
        found = self.needs.among(tenant, submission, None)
        return None if found is None else set(found)

    def check(self, requirement: str) -> set[str] | None:
        """The backends for a new prompt."""
        found = self.needs.check("anna", requiring(requirement), None, is_redacted=True)
        return None if found is None else set(found)

    def job(self, tenant: str) -> Any:
        """A job of a tenant's."""
        return SimpleNamespace(tenant=tenant, submission=PROMPT, log_ids={"prompt_id": "p"})


def requiring(text: str) -> Submission:
    """A prompt with a requirement."""
    return replace(PROMPT, require=parse_requirement(text))


def test_a_prompt_waits_until_the_memory_is_known() -> None:
    """It is refused once no backend can meet it; a backend that is gone may never tell."""
    world = World()
    assert world.check("vram>=24") == set()
    with pytest.raises(Rejection):
        world.check("ghost")
    world.tell("b1", 16)
    version = world.needs.version
    assert world.check("vram>=24") == set(), "two others may have more"
    assert world.check("vram>=12") == {"b1"}
    world.tell("b2", 8)
    assert world.needs.version > version, "waiting jobs are judged anew"
    world.backends["b3"].pulse.refused()
    with pytest.raises(Rejection) as refused:
        world.check("vram>=24")
    assert refused.value.body["error"]["extra_info"] == {"require": "vram>=24"}
    world.tell("b3", 24)
    assert world.check("vram>=24") == {"b3"}
    assert world.check("eu") is None
    world.tell("b3", 8)
    assert world.among(submission=requiring("vram>=24")) == set(), "an accepted job waits"
    world.tell("b2", 64, "cpu")
    assert world.check("vram<8") == {"b2"}, "memory of a host is no VRAM"


def test_nothing_is_judged_anew_that_nobody_asks_for() -> None:
    world = World()
    world.tell("b1", 16)
    assert (world.needs.version, world.among()) == (0, None)
    floor = World({"named": {"anna": {"require": ["vram>=16", "eu"]}}})
    floor.tell("b1", 16)
    assert floor.needs.version > 0
    assert floor.among() == {"b1"}
    assert floor.among("ben") is None


def test_short_jobs_go_to_larger_devices_that_are_up() -> None:
    """Of their tenant alone; if no larger one is up, they go anywhere."""
    world = World()
    for name, vram in (("b1", 8), ("b2", 16), ("b3", 24)):
        world.tell(name, vram)
    world.needs.ran_out(world.job("anna"), world.backends["b1"])
    assert world.among() == {"b2", "b3"}
    assert world.among("ben") is None
    assert world.among(submission=read(b'{"prompt": {"1": {"class_type": "Y", "inputs": {}}}}')) is None
    assert world.needs.has_larger(world.backends["b2"], None)
    assert not world.needs.has_larger(world.backends["b2"], frozenset({"b1"}))
    version = world.needs.version
    world.backends["b2"].pulse.refused()
    world.backends["b3"].drained = True
    world.needs.look()
    assert world.needs.version > version
    assert world.among() is None
    assert not world.needs.has_larger(world.backends["b1"], None)
    world.backends["b3"].drained = False
    world.needs.look()
    assert world.among() == {"b3"}
    assert world.among(submission=requiring("vram<=16")) == {"b1", "b2"}, "what is asked for goes first"
    world.needs.ran_out(world.job("anna"), world.backends["b3"])
    assert world.among() is None
    world.memory.forget()
    assert world.among() is None
