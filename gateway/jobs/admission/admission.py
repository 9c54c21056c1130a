"""Admission: decide if a prompt can run, may run, and where, by ComfyUI's rules and in its words."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gateway.catalogue import capabilities, tenant_view
from gateway.catalogue.catalogue import Catalogue
from gateway.catalogue.object_info import MergedCatalogue
from gateway.comfy import json_codec
from gateway.comfy.errors import error_body
from gateway.comfy.graph import FileInput, output_nodes
from gateway.comfy.node_review import file_inputs as reviewed_file_inputs
from gateway.comfy.validation import CustomCheck, Validation, validate_prompt
from gateway.jobs.admission import kept_state
from gateway.jobs.admission.device_needs import DeviceNeeds
from gateway.jobs.admission.inspection import Inspect, inspector
from gateway.jobs.admission.judged_backends import IsolationJudge
from gateway.jobs.admission.own_checks import inputs_with_own_checks
from gateway.jobs.admission.priorities import check_priority
from gateway.jobs.admission.redaction import (
    file_check,
    invalid_file,
    isolation_error,
    policy_error,
    redact_body,
    redact_node_errors,
    redacted,
    scrub,
    scrubbed,
)
from gateway.jobs.admission.replies import Overloaded
from gateway.jobs.files.inputs import Inputs
from gateway.jobs.isolation.judgement import FleetJudgement
from gateway.jobs.isolation.secret_folders import Steering
from gateway.jobs.state import partner_keys
from gateway.jobs.state.bindings import Bindings
from gateway.jobs.state.job import Job
from gateway.jobs.state.prompt_bounds import Rejection, too_many_outputs
from gateway.jobs.state.submission import Submission
from gateway.tenants.limits import Limits
from gateway.tenants.policy import NO_BACKEND, NO_BACKEND_HINT, Denied, Policies

MAX_SETS = 1_000


class Admission:
    """Checks of prompts: may one run, and on which backends.

    Args:
        device_needs: judge of the backends' devices.
        max_outputs: maximum number of a prompt's output nodes. ComfyUI names each failed one at each node behind it.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        inputs: Inputs,
        policies: Policies,
        judge: IsolationJudge,
        limits: Limits,
        bindings: Bindings,
        device_needs: DeviceNeeds,
        max_outputs: int = 500,
    ) -> None:
        self.device_needs = device_needs
        self._bindings = bindings
        self._catalogue = catalogue
        self._inputs = inputs
        self._policies = policies
        self._judge = judge
        self._limits = limits
        self._max_outputs = max_outputs
        self._files_of: object = None
        self._sets: dict[frozenset[str], frozenset[str]] = {}
        self._file_inputs: frozenset[tuple[str, str]] = frozenset()

    @property
    def file_inputs(self) -> Collection[tuple[str, str]]:
        """Return the (class_type, input) that name a file, by the node's own description or by the review."""
        known = self._catalogue.capabilities
        if known is not self._files_of:
            self._files_of, self._file_inputs = known, known.file_inputs | reviewed_file_inputs()
        return self._file_inputs

    @property
    def version(self) -> int:
        """Return the version of the catalogue and of the backends' devices by which jobs are judged."""
        return self._catalogue.version + self.device_needs.version

    def checks_fully(self, tenant: str, submission: Submission) -> bool:
        """Return True if the gateway can check a prompt as a backend would.

        A custom node class may have checks of its own (execution.py, validate_inputs), and so may an unknown one.
        """
        if self._catalogue.merged_catalogue is None:
            return False
        classes = self._classes(tenant, submission)
        return not any((found := classes.get(name)) is None or _is_custom(found) for _, name in submission.nodes)

    def outputs_of(self, submission: Submission) -> list[str]:
        """Return the output nodes that a prompt will execute; none while there is no catalogue."""
        merged_catalogue = self._catalogue.merged_catalogue
        return (
            output_nodes(submission.nodes, merged_catalogue.classes, submission.targets)
            if merged_catalogue is not None
            else []
        )

    def is_restricted(self, tenant: str) -> bool:
        """Return True if a tenant may not use all of the fleet, so that the gateway redacts refusals for it."""
        return self._policies.of(tenant).view is not None

    def allowed(self, tenant: str) -> frozenset[str] | None:
        """Return the backends that a tenant's jobs may go to; None for all."""
        return self._policies.of(tenant).allowed

    def lacks_backends(self, tenant: str) -> bool:
        """Return True if a tenant may use none of the backends that are configured now."""
        allowed = self.allowed(tenant)
        return allowed is not None and not allowed

    def end_of(self, job: Job) -> tuple[str, str] | None:
        """Return why a job would wait for ever after a change since it came, and the error's type; None if it won't."""
        if job.submission.lacks_secrets:
            return partner_keys.LOST
        if self.lacks_backends(job.tenant):
            return f"{NO_BACKEND}: {NO_BACKEND_HINT}", "PolicyDenied"
        allowed = self.allowed(job.tenant)
        usable = self._inputs.fleet.backends.keys() if allowed is None else allowed
        if (end := self.device_needs.reason_to_end(job, usable)) is not None:
            return end
        return kept_state.reason_to_end(self._bindings, job, usable) if job.submission.bound else None

    def _able_and_free(
        self, tenant: str, submission: Submission, judged: FleetJudgement | None
    ) -> frozenset[str] | None:
        """Return the tenant's backends that can and may run a prompt, whatever their devices; None for all backends.

        A prompt of an isolated tenant goes to a shared backend only while that backend's own catalogue is known.
        """
        able = self._able(tenant, submission)
        if judged is None:
            return able
        free = self._judge.dedicated(tenant)
        shared = judged.backends & self._catalogue.current
        if shared and free and self._inputs.foreign(tenant, submission.files):
            shared = frozenset()
        may = shared | free
        if able is not None:
            may = able & may
        elif may >= self._inputs.fleet.backends.keys():
            return None
        # Share equal sets, because ten thousand waiting jobs have a few different sets among them.
        if len(self._sets) > MAX_SETS:
            self._sets.clear()
        return self._sets.setdefault(may, may)

    def _able(self, tenant: str, submission: Submission) -> frozenset[str] | None:
        """Return the tenant's backends that can run a prompt, take its files, and have the state that it names."""
        able = kept_state.among(self._able_by_catalogue(tenant, submission), submission)
        if not submission.files or not (small := self._inputs.too_small(tenant, submission.files)):
            return able
        left = frozenset(self._inputs.fleet.backends if able is None else able) - small
        # If no backend takes the files, leave the refusal to a backend.
        return self._sets.setdefault(left, left) if left else able

    def _able_by_catalogue(self, tenant: str, submission: Submission) -> frozenset[str] | None:
        """Return the tenant's backends that have a prompt's node classes and list values; None for all backends."""
        known, allowed = self._catalogue.capabilities, self.allowed(tenant)
        names = None
        if known.classes or known.choices:
            names = capabilities.able(known, (name for _, name in submission.nodes), self._needs(submission))
        if allowed is None:
            return None if names is None else names | self._catalogue.unknown()
        # While the catalogue knows none of the tenant's backends, let the prompt wait for them.
        is_any_known = not allowed.isdisjoint(known.backends)
        return allowed if names is None or not is_any_known else (names | self._catalogue.unknown()) & allowed

    def remember(self, job: Job, able: frozenset[str] | None) -> None:
        """Keep the backends that `find_able` has just found for a job, to save that work later."""
        if able is None or able:
            job.able, job.judged_by = able, self.version

    def refresh_able(self, job: Job) -> frozenset[str] | None:
        """Return the backends that can run a waiting job, and note the reason if none may. Keep both per catalogue."""
        version = self.version
        if job.judged_by != version:
            job.judgement = judged = self._judge.of(job.tenant, job.submission, job.judgement)
            able = self._able_and_free(job.tenant, job.submission, judged)
            job.unfit = self._unfit(job.tenant, judged) if able is not None and not able else None
            job.able, job.judged_by = self.device_needs.among(job.tenant, job.submission, able), version
        return job.able

    def steering(self, job: Job, backend: str) -> Steering | None:
        """Return the changes by which a job's savers write into secret folders on a backend.

        Return None if the backend must not run the job any more, because its node classes, or the trust, have changed.
        """
        return self._judge.steering(job, backend)

    def look_cost(self, job: Job) -> int:
        """Return about how many microseconds `refresh_able` takes: 0 unless the catalogue has changed since."""
        if job.judged_by == self.version:
            return 0
        nodes, size = len(job.submission.nodes), len(job.submission.prompt)
        is_judged_anew = job.judgement is not None and job.judgement.catalogue_mark is not self._catalogue.mark
        if is_judged_anew:
            return 20 + 25 * nodes + size // 300
        return 5 + (nodes + size // 300 if self._catalogue.capabilities.choices else 0)

    def _unfit(self, tenant: str, judged: FleetJudgement | None) -> str | None:
        """Return the reason why no backend may run a prompt that was accepted, None if it only has to wait.

        The fleet's node classes may have changed since.
        """
        if judged is None or not judged.refusals or self._judge.dedicated(tenant):
            return None
        first = judged.refusals[0]
        return first.reason if first.input_name is None else f"{first.class_type}.{first.input_name}: {first.reason}"

    def _needs(self, submission: Submission) -> frozenset[capabilities.Need]:
        known = self._catalogue.capabilities
        differing = {name for name, _ in known.choices}
        if not any(name in differing for _, name in submission.nodes):
            return frozenset()
        return capabilities.needs_of(submission.graph(), known)

    def differing_classes(self, submission: Submission) -> list[str]:
        """Return the node classes of a prompt that some backend lacks, or whose lists differ."""
        known, merged_catalogue = self._catalogue.capabilities, self._catalogue.merged_catalogue
        classes = merged_catalogue.classes if merged_catalogue is not None else {}
        differing = known.classes.keys() | {name for name, _ in known.choices}
        return [name for _, name in submission.nodes if name in differing or name not in classes]

    def find_able(self, tenant: str, submission: Submission) -> frozenset[str] | None:
        """Refuse a prompt that can't or must not run. Return the backends that can run it; None if any can.

        If a prompt names another tenant's file, the answer is that for a missing file, except to an admin.

        Raises:
            Rejection: the prompt can't run, or names something that its tenant must not use.
            LimitReached: the prompt names too many files that are not its tenant's own.
            Overloaded: the prompt can't be judged yet.
        """
        check_priority(submission, self._policies.of(tenant).max_priority)
        if len(submission.nodes) > self._max_outputs:
            self._refuse_many_outputs(submission)
        found = self.denied(tenant, submission)
        if found:
            raise Rejection(400, policy_error(found))
        kept_state.check(self._bindings, tenant, submission)
        judged = self._judge.of(tenant, submission)
        is_free = bool(self._judge.dedicated(tenant))
        if judged is not None and not judged.backends and not is_free:
            self._refuse_judged(tenant, submission, judged)
        if not (submission.by_admin or is_free) and submission.files:
            if judged is not None:
                names = self._inputs.unproven(tenant, submission.files)
                self._limits.bad_names(tenant, names, time.monotonic())
            foreign = self._inputs.foreign(tenant, submission.files)
            if foreign:
                self._reject(tenant, submission, foreign)
        if submission.files and (gone := self._inputs.deleted(tenant, submission.files)):
            self._reject(tenant, submission, gone)
        able = self._able(tenant, submission)
        if able is not None and not able:
            self._refuse_impossible(tenant, submission)
        able = self._able_and_free(tenant, submission, judged)
        is_redacted = not submission.by_admin and (self.is_restricted(tenant) or self.is_judged(tenant))
        return self.device_needs.check(tenant, submission, able, is_redacted=is_redacted)

    def _refuse_many_outputs(self, submission: Submission) -> None:
        """Refuse a prompt with too many outputs. A node of an unknown class counts as an output.

        Raises:
            Rejection: it has too many.
            Overloaded: no backend has said yet which classes are outputs.
        """
        merged_catalogue, targets = self._catalogue.merged_catalogue, submission.targets
        if merged_catalogue is None:
            raise Overloaded("no backend has said yet which node classes it has, so outputs can't be counted")
        wanted = None if targets is None else frozenset(each for each in targets if isinstance(each, str))
        count = 0
        for node_id, class_type in submission.nodes:
            if wanted is None or node_id in wanted:
                known = merged_catalogue.classes.get(class_type)
                count += known is None or known.get("output_node") is True
        if count > self._max_outputs:
            raise too_many_outputs(count, self._max_outputs)

    def is_judged(self, tenant: str) -> bool:
        """Return True if a tenant shares backends with strangers, so that it may open nothing but its own."""
        return self._judge.is_judged(tenant)

    def inspector(self, tenant: str, *, by_admin: bool) -> Inspect:
        """Return the function with which `read` inspects a graph."""
        return inspector(self._catalogue.merged_catalogue, self._judge.inspector(tenant, by_admin=by_admin))

    async def ready(self, tenant: str) -> None:
        """Wait until a tenant's prompts can be judged, because after a start the catalogue is not there yet."""
        policy = self._policies.of(tenant)
        if self._catalogue.merged_catalogue is None:
            if self._judge.is_judged(tenant):
                await self._catalogue.first_merge()
        elif policy.view is not None:
            # Compute the tenant's view in a thread, because that may take long.
            await self._catalogue.seen_by(policy)

    async def ready_for(self, submission: Submission) -> None:
        """Wait until a prompt's outputs can be counted, if they may be too many."""
        if self._catalogue.merged_catalogue is None and len(submission.nodes) > self._max_outputs:
            await self._catalogue.first_merge()

    def _refuse_judged(self, tenant: str, submission: Submission, judged: FleetJudgement) -> None:
        """Refuse a prompt that no shared backend may run.

        Raises:
            Overloaded: no backend has said yet which node classes it has.
            Rejection: otherwise.
        """
        if not judged.is_known:
            raise Overloaded("no backend has said yet which node classes it has, so no prompt can be judged")
        may_be_comfyuis = all(refusal.is_linked for refusal in judged.refusals)
        found = self._validate(submission, self._classes(tenant, submission), ()) if may_be_comfyuis else None
        if found is not None and not found.valid:
            # If ComfyUI refuses the links as well, its own words say more.
            raise self._rejection(tenant, found.body())
        if judged.refusals:
            raise Rejection(400, isolation_error(judged.refusals))
        details = "no backend has all node classes of this prompt"
        raise Rejection(400, error_body("no_backend_able", "No backend has all that this prompt needs", details))

    def told(self, tenant: str, refusal: bytes) -> bytes:
        """Return a backend's refusal as a tenant may read it."""
        if self._judge.is_judged(tenant):
            return redacted(refusal, lambda *listed: self._hides(tenant, *listed))
        may_list = not self.is_restricted(tenant) and (
            b'"input_config"' not in refusal or self._inputs.sees_all(tenant)
        )
        return refusal if may_list else scrubbed(refusal, lambda *listed: self._hides(tenant, *listed))

    def told_of(self, tenant: str, node_errors: Any) -> Any:
        """Return a backend's ``node_errors`` of left-out outputs as a tenant may read them. They may be changed."""
        if node_errors and self._judge.is_judged(tenant):
            try:
                return redact_node_errors(node_errors, lambda *listed: self._hides(tenant, *listed))
            except (LookupError, TypeError, AttributeError):
                return {}
        if node_errors and (self.is_restricted(tenant) or not self._inputs.sees_all(tenant)):
            try:
                scrub(node_errors, lambda *listed: self._hides(tenant, *listed))
            except (LookupError, TypeError, AttributeError):
                return {}
        return node_errors

    def _hides(self, tenant: str, class_type: str, input_name: str, choices: Sequence[Any]) -> bool:
        """Return True if a tenant must not see a list of choices.

        The tenant may not use all of the fleet, or is judged and the list may name files, or others' files are in it.
        """
        return (
            self.is_restricted(tenant)
            or (self._judge.is_judged(tenant) and self._judge.lists_files(class_type, input_name))
            or self._inputs.offers_foreign(tenant, class_type, input_name, choices)
        )

    def denied(self, tenant: str, submission: Submission) -> list[Denied]:
        """Return the node classes and models that a prompt names and its tenant may not use."""
        policy = self._policies.of(tenant)
        if not policy.nodes and not policy.models:
            return []
        merged_catalogue = self._catalogue.merged_catalogue
        return tenant_view.denied(
            submission.graph(), policy, merged_catalogue.classes if merged_catalogue is not None else {}
        )

    def _refuse_impossible(self, tenant: str, submission: Submission) -> None:
        """Refuse a prompt that no backend can run, with ComfyUI's own answer, and the lacks of each backend.

        If the tenant may not use all of the fleet, the answer reveals nothing of the other backends.

        Raises:
            Rejection: always.
        """
        known, classes = self._catalogue.capabilities, [name for _, name in submission.nodes]
        needs, allowed = self._needs(submission), self.allowed(tenant)
        names = sorted(known.backends if allowed is None else known.backends & allowed)
        missing = {name: capabilities.lacks(known, name, classes, needs) for name in names}
        nearest = min(missing, key=lambda name: len(missing[name]))
        is_restricted = self.is_restricted(tenant)
        described = self._classes(tenant, submission) if is_restricted else self._catalogue.info(nearest)
        found = self._validate(submission, described, ())
        if found.valid:
            details = "; ".join(f"{name} {', '.join(lacking)}" for name, lacking in missing.items())
            raise Rejection(400, error_body("no_backend_able", "No backend has all that this prompt needs", details))
        body = found.body()
        if not is_restricted:
            body["error"]["extra_info"] = {**body["error"]["extra_info"], "backends": missing}
            body = json_codec.loads(self.told(tenant, json_codec.dumps(body)))
        raise self._rejection(tenant, body)

    def _rejection(self, tenant: str, body: dict[str, Any]) -> Rejection:
        """Return a refusal of the gateway's own, as the tenant may read it."""
        if self._judge.is_judged(tenant):
            _, body = redact_body(body, lambda *listed: self._hides(tenant, *listed))
        return Rejection(400, body)

    def _classes(self, tenant: str, submission: Submission) -> Mapping[str, Any]:
        """Return the node classes of a prompt as its tenant sees them."""
        return self._catalogue.described({name for _, name in submission.nodes}, self._policies.of(tenant))

    async def validate_waiting(self, tenant: str, submission: Submission) -> Validation | None:
        """Check a prompt that has to wait. Return None while no backend has described its node classes.

        Raises:
            Rejection: it can't run.
        """
        merged_catalogue = self._catalogue.merged_catalogue
        if merged_catalogue is None:
            return None
        absent = await self._inputs.absent(tenant, submission.files)
        found = self._validate(submission, self._classes(tenant, submission), absent)
        if not found.valid:
            raise self._rejection(tenant, found.body())
        return found

    def _reject(self, tenant: str, submission: Submission, files: Collection[FileInput]) -> None:
        merged_catalogue: MergedCatalogue | None = self._catalogue.merged_catalogue
        classes = self._classes(tenant, submission)
        found = self._validate(submission, classes, files) if merged_catalogue is not None else None
        if found is not None and not found.valid:
            raise self._rejection(tenant, found.body())
        details = "\n".join(invalid_file(file.input_name, file.value) for file in files)
        raise Rejection(
            400, error_body("prompt_outputs_failed_validation", "Prompt outputs failed validation", details)
        )

    def _validate(
        self, submission: Submission, classes: Mapping[str, Any], absent: Collection[FileInput]
    ) -> Validation:
        prompt = submission.graph()
        for node_id, name, value in submission.separated:
            # Respell the name for the validation, because the gateway sends it with the backend's own separator.
            node = prompt[node_id]
            node["inputs"][name] = capabilities.spelled(classes.get(node["class_type"]), name, value)
        used = {name for _, name in submission.nodes}
        open_lists = {name for name in used if _is_custom(classes.get(name))}
        return validate_prompt(
            prompt,
            classes,
            partial_execution_targets=submission.targets,
            custom=self._custom_checks(submission, classes, absent),
            open_lists=open_lists,
        )

    def _custom_checks(
        self, submission: Submission, classes: Mapping[str, Any], absent: Collection[FileInput]
    ) -> dict[str, CustomCheck]:
        named = dict(submission.nodes)
        wrong: dict[str, set[tuple[str, str]]] = {}
        for file in absent:
            wrong.setdefault(named[file.node_id], set()).add((file.input_name, file.value))
        checks: dict[str, CustomCheck] = {}
        for name in set(named.values()):
            exempt = {input_name for owner, input_name in self.file_inputs if owner == name}
            exempt |= inputs_with_own_checks(name, classes.get(name))
            if exempt or name in wrong:
                checks[name] = (frozenset(exempt), file_check(frozenset(wrong.get(name, ()))))
        return checks


def _is_custom(description: Any) -> bool:
    return str((description or {}).get("python_module", "")).startswith("custom_nodes")
