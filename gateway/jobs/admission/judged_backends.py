"""Find the shared backends that may run a prompt of an isolated tenant, as the fleet is now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from gateway.catalogue.catalogue import Catalogue
from gateway.catalogue.object_info import MergedCatalogue
from gateway.comfy.class_profiles import ClassProfile
from gateway.comfy.node_review import OPENING, Kind
from gateway.jobs.isolation.judgement import FleetJudgement, Refusal, judge
from gateway.jobs.isolation.secret_folders import JOIN, REPLACE, UNCHANGED, Plan, Steering, plan, steer
from gateway.jobs.state.job import Job
from gateway.jobs.state.submission import Submission
from gateway.tenants.policy import Policies, Policy
from gateway.tenants.secret_names import SecretNames

_NONE: frozenset[str] = frozenset()
# Inputs of these kinds have lists that may name files.
_LISTING = OPENING | {Kind.DATASETS, Kind.UNREVIEWED}


class IsolationJudge:
    """Judge of the prompts of tenants that share backends with strangers.

    Args:
        is_apart: returns True for a tenant that is not alone on the fleet.
        names: maker of the names of secret folders, into which savers are steered.
    """

    def __init__(
        self, catalogue: Catalogue, policies: Policies, is_apart: Callable[[str], bool], names: SecretNames
    ) -> None:
        self._catalogue = catalogue
        self._policies = policies
        self._is_apart = is_apart
        self._names = names
        # The shared backends of each policy, as one object, because ten thousand waiting jobs have the same.
        self._shared: dict[int, frozenset[str]] = {}
        self._shared_of: object = None

    def is_judged(self, tenant: str) -> bool:
        """Return True if a tenant's prompts are judged: it is not alone, and shares a backend with others."""
        if not self._is_apart(tenant):
            return False
        policy = self._policies.of(tenant)
        own = self._catalogue.fleet.backends.keys() if policy.allowed is None else policy.allowed
        return not own <= policy.dedicated

    def is_kept_apart(self, job: Job) -> bool:
        """Return True if a job's sender must not read about the host and the other tenants that share it."""
        return not job.submission.by_admin and self.is_judged(job.tenant)

    def lists_files(self, class_type: str, input_name: str) -> bool:
        """Return True if an input's list may name files or folders, so that a tenant gets neither it nor its length.

        Any list of a class that is not reviewed counts, because its contents are not known.
        """
        merged_catalogue = self._catalogue.merged_catalogue
        profile = merged_catalogue.profiles.common.get(class_type) if merged_catalogue is not None else None
        known = profile.inputs.get(input_name) if profile is not None and profile.is_reviewed else None
        return known is None or known.kind in _LISTING

    def is_hidden(self, tenant: str, backend: str) -> bool:
        """Return True if a tenant's files on a backend lie among those of strangers."""
        return self.is_judged(tenant) and backend not in self._policies.of(tenant).dedicated

    def is_reviewed(self, class_type: str) -> bool:
        """Return True if a class is stock and was reviewed, wherever it is."""
        merged_catalogue = self._catalogue.merged_catalogue
        if merged_catalogue is None:
            return False
        profiles = merged_catalogue.profiles
        common = profiles.common.get(class_type)
        known = [common] if common is not None else list(profiles.varied.get(class_type, {}).values())
        return bool(known) and all(profile.is_reviewed for profile in known)

    def dedicated(self, tenant: str) -> frozenset[str]:
        """Return the names of the backends on which a tenant is refused nothing."""
        return self._policies.of(tenant).dedicated

    def inspector(self, tenant: str, *, by_admin: bool) -> Callable[[Mapping[str, Any], bool], FleetJudgement] | None:
        """Return the function that judges a parsed graph; None if the caller's prompts are not judged.

        Its second argument is True if the graph is plain (`Submission.is_plain`).
        """
        if by_admin or not self.is_judged(tenant):
            return None
        return lambda prompt, is_plain: self._judge(tenant, prompt, is_plain)

    def of(self, tenant: str, submission: Submission, last: FleetJudgement | None = None) -> FleetJudgement | None:
        """Return the judgement of a submission by today's catalogue, None if it needs none.

        Args:
            last: the submission's last judgement, if any.
        """
        mark = self._catalogue.mark
        for known in (last, submission.judgement):
            # Keep a judgement until the catalogue changes. If the tenant is alone by now, it refuses more than it must.
            if isinstance(known, FleetJudgement) and known.catalogue_mark is mark:
                return known
        if submission.by_admin or not self.is_judged(tenant):
            return None
        return self._judge(tenant, submission.graph(), submission.is_plain)

    def _shared_by(self, policy: Policy, merged_catalogue: MergedCatalogue) -> frozenset[str]:
        if self._shared_of is not merged_catalogue.mark:
            self._shared, self._shared_of = {}, merged_catalogue.mark
        found = self._shared.get(id(policy))
        if found is None:
            described = merged_catalogue.capabilities.backends - policy.dedicated
            found = described if policy.allowed is None else described & policy.allowed
            self._shared[id(policy)] = found
        return found

    def _judge(self, tenant: str, prompt: Mapping[str, Any], is_plain: bool) -> FleetJudgement:
        policy, merged_catalogue = self._policies.of(tenant), self._catalogue.merged_catalogue
        shared = self._shared_by(policy, merged_catalogue) if merged_catalogue is not None else _NONE
        if merged_catalogue is None or not shared:
            return FleetJudgement(self._catalogue.mark, _NONE, is_known=False)

        def trusts(profile: ClassProfile) -> bool:
            return policy.trusts(profile.name, profile.pack)

        classes = (name for node in prompt.values() if isinstance(name := node.get("class_type"), str))
        able = _NONE
        refusals: tuple[Refusal, ...] = ()
        chosen: Plan | None = None
        steering = UNCHANGED
        for names, profile in merged_catalogue.profiles.groups(classes, shared):
            judgement = judge(prompt, profile, trusts)
            if judgement.refusals or judgement.unknown:
                refusals = refusals or judgement.refusals
                continue
            planned = _plan(prompt, judgement.savers, profile, trusts)
            if planned.has_links:
                # The groups differ in the prompt's own classes alone, so a backend may lack an added one.
                for added in (REPLACE, JOIN):
                    names = names & merged_catalogue.capabilities.classes.get(added, names)
            if planned.refused or not names:
                refusals = refusals or _unsteerable(prompt, profile, planned)
            elif not able:
                able, chosen = names, planned
                folder_of, node_id_of = self._names.output_folders(tenant), partial(self._names.added_node, tenant)
                steering = steer(prompt, planned, folder_of, node_id_of, judgement.opened, is_plain=is_plain)
            elif planned == chosen:
                # If backends differ in which inputs decide where a class writes, those like the first one run it.
                able = able | names
        return FleetJudgement(merged_catalogue.mark, able, () if able else refusals, steering=steering)

    def steering(self, job: Job, backend: str) -> Steering | None:
        """Return the changes by which a job's savers write into secret folders, none if it shares no backend.

        None if the backend must not run the job by today's catalogue.
        """
        if job.submission.by_admin or not self.is_hidden(job.tenant, backend):
            return UNCHANGED
        judged = self.of(job.tenant, job.submission, job.judgement)
        if judged is None:
            return UNCHANGED
        return judged.steering if backend in judged.backends else None


def _is_reviewed(profile: ClassProfile | None) -> bool:
    return profile is not None and profile.is_reviewed


def _plan(
    prompt: Mapping[str, Any],
    savers: Mapping[str, ClassProfile],
    profile: Callable[[str], ClassProfile | None],
    trusts: Callable[[ClassProfile], bool],
) -> Plan:
    def is_spared(known: ClassProfile) -> bool:
        # If the operator trusts a class that saves models, don't steer it, because loaders must find the models.
        return known.saves_models and trusts(known)

    return plan(prompt, savers, lambda name: _is_reviewed(profile(name)), is_spared)


def _unsteerable(
    prompt: Mapping[str, Any], profile: Callable[[str], ClassProfile | None], planned: Plan
) -> tuple[Refusal, ...]:
    """Return the refusals of linked prefixes that can't be put below a secret folder."""
    found = []
    for node_id, name in (*planned.refused, *planned.linked):
        class_type = prompt[node_id]["class_type"]
        known = profile(class_type)
        pack = known.pack if known is not None else ""
        reason = f"give it as it is: a link needs the stock classes {REPLACE} and {JOIN}, which no backend here has"
        found.append(Refusal(node_id, class_type, pack, class_type, name, reason, is_linked=True))
    return tuple(found)
