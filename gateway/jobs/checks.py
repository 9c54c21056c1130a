"""Can a prompt run at all, and where? Asked before it is accepted, by ComfyUI's rules and in its words."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gateway.comfy import wire
from gateway.comfy.errors import error_body
from gateway.comfy.graph import LINKED, FileInput, output_nodes, texts
from gateway.comfy.validation import CustomCheck, Validation, validate_prompt
from gateway.fleet import abilities
from gateway.fleet.catalogue import Catalogue
from gateway.fleet.editions import Edition
from gateway.jobs.admission import Rejection, Submission
from gateway.jobs.inputs import Inputs
from gateway.jobs.job import Job

# Core nodes that check these inputs themselves, so that ComfyUI does not hold them against their lists and ranges
# (execution.py, validate_inputs); None for all of a node's inputs. Those that name files are known as such.
_OWN_CHECKS: Mapping[str, frozenset[str] | None] = {
    "Load3D": None,
    "Load3DAdvanced": None,
    "CustomCombo": None,
    "ComfySoftSwitchNode": frozenset({"switch", "on_false", "on_true"}),
    "SelectModelDevice": frozenset({"device"}),
    "SelectCLIPDevice": frozenset({"device"}),
    "SelectVAEDevice": frozenset({"device"}),
    "ModelAttentionBackend": frozenset({"attention"}),
}
_WHAT = {"audio": "audio", "file": "video", "model_file": "3D model", "latent": "latent"}


class Checks:
    """What is known of a prompt's chances."""

    def __init__(self, catalogue: Catalogue, inputs: Inputs) -> None:
        self._catalogue = catalogue
        self._inputs = inputs

    @property
    def file_inputs(self) -> Collection[tuple[str, str]]:
        """The (class_type, input) that name a file."""
        return self._catalogue.abilities.file_inputs

    def outputs_of(self, submission: Submission) -> list[str]:
        """The nodes that a prompt will execute, as far as the catalogue tells."""
        edition = self._catalogue.edition
        return output_nodes(submission.nodes, edition.classes, submission.targets) if edition is not None else []

    def able(self, submission: Submission) -> frozenset[str] | None:
        """The backends that have the node classes and list values of a prompt; None if any will do."""
        known = self._catalogue.abilities
        if not known.classes and not known.choices:
            return None
        names = abilities.able(known, (name for _, name in submission.nodes), self._needs(submission))
        return None if names is None else names | self._catalogue.unknown()

    def able_for(self, job: Job) -> frozenset[str] | None:
        """The same for a job that waits; found out again only when the catalogue has changed."""
        if job.judged_by is not self._catalogue.edition:
            job.able, job.judged_by = self.able(job.submission), self._catalogue.edition
        return job.able

    def _needs(self, submission: Submission) -> frozenset[abilities.Need]:
        known = self._catalogue.abilities
        differing = {name for name, _ in known.choices}
        if not any(name in differing for _, name in submission.nodes):
            return frozenset()
        return abilities.needs_of(wire.loads(submission.prompt), known)

    def refuse_foreign(self, tenant: str, submission: Submission) -> None:
        """A file that is another tenant's answers as one that is not there.

        Raises:
            Rejection: the prompt names one.
        """
        foreign = self._inputs.foreign(tenant, submission.files)
        if foreign:
            self._reject(submission, foreign)

    def refuse_impossible(self, submission: Submission) -> None:
        """No backend has all that a prompt needs: ComfyUI's own answer, and what is missing where.

        Raises:
            Rejection: always.
        """
        known, classes = self._catalogue.abilities, [name for _, name in submission.nodes]
        needs = self._needs(submission)
        missing = {name: abilities.lacks(known, name, classes, needs) for name in sorted(known.backends)}
        nearest = min(missing, key=lambda name: len(missing[name]))
        found = self._validate(submission, self._catalogue.info(nearest), ())
        if found.valid:
            details = "; ".join(f"{name} {', '.join(lacking)}" for name, lacking in missing.items())
            raise Rejection(400, error_body("no_backend_able", "No backend has all that this prompt needs", details))
        body = found.body()
        body["error"]["extra_info"] = {**body["error"]["extra_info"], "backends": missing}
        raise Rejection(400, body)

    async def check(self, tenant: str, submission: Submission) -> Validation | None:
        """Check a prompt that has to wait. None while no backend has said yet what it can do.

        Raises:
            Rejection: it can't run.
        """
        edition = self._catalogue.edition
        if edition is None:
            return None
        absent = await self._inputs.absent(tenant, submission.files)
        found = self._validate(submission, edition.classes, absent)
        if not found.valid:
            raise Rejection(400, found.body())
        return found

    def _reject(self, submission: Submission, files: Collection[FileInput]) -> None:
        edition: Edition | None = self._catalogue.edition
        found = self._validate(submission, edition.classes, files) if edition is not None else None
        if found is not None and not found.valid:
            raise Rejection(400, found.body())
        details = "\n".join(f"{file.input_name} - {_invalid(file.input_name, file.value)}" for file in files)
        raise Rejection(
            400, error_body("prompt_outputs_failed_validation", "Prompt outputs failed validation", details)
        )

    def _validate(
        self, submission: Submission, classes: Mapping[str, Any], absent: Collection[FileInput]
    ) -> Validation:
        prompt = wire.loads(submission.prompt)
        for node_id, name, value in submission.separated:
            # Whatever its separator, it is sent as its backend spells it.
            node = prompt[node_id]
            node["inputs"][name] = abilities.spelled(classes.get(node["class_type"]), name, value)
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
            if name in _OWN_CHECKS:
                own = _OWN_CHECKS[name]
                exempt |= _names(classes.get(name)) if own is None else own
            if exempt or name in wrong:
                checks[name] = (frozenset(exempt), _check_of(frozenset(wrong.get(name, ()))))
        return checks


def _check_of(wrong: frozenset[tuple[str, str]]) -> Any:
    def check(inputs: Mapping[str, Any]) -> list[tuple[str, str]]:
        return [
            (name, f"{name} - {_invalid(name, text)}")
            for name, value in inputs.items()
            for text in (LINKED, *(text for _, text in texts(value)))
            if (name, text) in wrong
        ]

    return check


def _invalid(input_name: str, value: str) -> str:
    return f"Invalid {_WHAT.get(input_name, 'image')} file: {value}"


def _names(description: Any) -> set[str]:
    return {name for part in (description or {}).get("input", {}).values() for name in part}


def _is_custom(description: Any) -> bool:
    return str((description or {}).get("python_module", "")).startswith("custom_nodes")
