"""Policies of tenants: the backends, node classes and models that each may use. Pure; `Policies.of` is one look-up."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from typing import Any

from gateway.settings import BackendSettings, LimitSettings, PolicySettings, TenantSettings

# The words for the caller in a refusal if only the tenant is known, because some of its callers may have no key.
CALLER = "this caller"
# The error for a tenant that lacks backends.
NO_BACKEND = f"No backend may be used by {CALLER}"
NO_BACKEND_HINT = "every backend is dedicated to other tenants; the operator can share one, or add this tenant to one"
# An embedding is named inside a text (comfy/sd1_clip.py, SDTokenizer); its suffix may be left out.
_EMBEDDING = re.compile(r"embedding:([^\s,()<>\[\]]+)", re.IGNORECASE)
# PATH_MAX of Linux, and the maximum number of embeddings that are looked up in one text.
_MAX_PATH = 4_096
_MAX_EMBEDDINGS = 1_000


@dataclass(frozen=True, slots=True)
class View:
    """The part of the fleet that a tenant sees, if not all. Tenants with equal views share merged catalogues.

    `allowed` holds the names of the backends, None for all. `nodes` and `models` hold the patterns of refused names.
    """

    allowed: frozenset[str] | None
    nodes: tuple[str, ...]
    models: tuple[str, ...]

    def may_use(self, backend: str) -> bool:
        """Return True if the view allows a backend."""
        return self.allowed is None or backend in self.allowed


class Patterns:
    """Glob patterns, compiled once. An empty list of patterns matches nothing."""

    def __init__(self, patterns: Sequence[str], flags: int = 0) -> None:
        self._compiled = re.compile("|".join(map(translate, patterns)), flags) if patterns else None

    def __bool__(self) -> bool:
        return self._compiled is not None

    def match(self, text: str) -> bool:
        """Return True if one of the patterns matches the whole text."""
        return self._compiled is not None and self._compiled.match(text) is not None


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules for a tenant. `view` is None for a tenant that may use the whole fleet."""

    view: View | None = None
    deadline: float | None = None
    limits: LimitSettings = field(default_factory=LimitSettings)
    nodes: Patterns = field(default_factory=lambda: Patterns(()))
    models: Patterns = field(default_factory=lambda: Patterns(()))
    trusted: Patterns = field(default_factory=lambda: Patterns(()))
    # The backends that take prompts of this tenant, and of others that the configuration names, but not of all.
    dedicated: frozenset[str] = frozenset()
    # The backends that are dedicated to other tenants: not even files of this tenant are read from them.
    closed: frozenset[str] = frozenset()
    # The name of the tenant's routing policy; None for the gateway's.
    routing: str | None = None
    # The tenant's part of the GPU seconds, relative to other tenants' weights, and the highest priority of its prompts.
    weight: float = 1.0
    max_priority: int = 0
    # The conditions that a backend must meet to run the tenant's jobs (gateway/jobs/routing/requirements.py).
    require: tuple[str, ...] = ()

    @property
    def allowed(self) -> frozenset[str] | None:
        """Return the backends that may run the tenant's jobs; None for all."""
        return self.view.allowed if self.view is not None else None

    @property
    def lacks_backends(self) -> bool:
        """Return True if every backend is dedicated to other tenants."""
        return self.allowed is not None and not self.allowed

    def denies_node(self, class_type: str) -> bool:
        """Return True if a node class is refused. The name must match exactly, as in ComfyUI's own look-up."""
        return self.nodes.match(class_type)

    def trusts(self, class_type: str, pack: str) -> bool:
        """Return True if the operator trusts a class, by its name or by the name of its pack, both exact."""
        return self.trusted.match(class_type) or self.trusted.match(pack)

    def denies_model(self, name: str) -> bool:
        """Return True if a model is refused, by its path in its folder or by its file name alone.

        Kinds of separators, case of letters, ``./``, and trailing dots and blanks make no difference. Some file system
        takes such names for the same.
        """
        if not self.models:
            return False
        if len(name) > _MAX_PATH:
            # ComfyUI may make a short path of it (folder_paths.py, get_full_path).
            return True
        path = plain_path(name)
        return self.models.match(path) or self.models.match(path.rpartition("/")[2])

    def denies_embedding(self, text: str) -> str | None:
        """Return the first refused embedding that a text names; None if it names none."""
        if self.models and (count := text.lower().count("embedding:")):
            if count > _MAX_EMBEDDINGS:
                return f"more than {_MAX_EMBEDDINGS} names"
            return next((name for name in _EMBEDDING.findall(text) if self._denies_bare(name)), None)
        return None

    def _denies_bare(self, name: str) -> bool:
        # It may be the name of any kind of file that holds embeddings (comfy/sd1_clip.py, load_embed).
        return any(self.denies_model(name + suffix) for suffix in ("", ".safetensors", ".pt", ".bin"))


def plain_path(name: str) -> str:
    """Return a model's path in one spelling, in lower case. The path never leads out of its folder."""
    parts: list[str] = []
    for part in name.replace("\\", "/").casefold().split("/"):
        if part == "..":
            parts = parts[:-1]
        elif plain := part.rstrip(" ."):
            parts.append(plain)
    return "/".join(parts)


class Policies:
    """The policies of all tenants."""

    def __init__(self, settings: TenantSettings, backends: Iterable[BackendSettings]) -> None:
        backends = tuple(backends)
        named = settings.policies()
        self.default = _policy(settings.default, backends, None)
        # The patterns of trusted classes and packs, for tenants without patterns of their own.
        self.trust = settings.default.nodes.trust
        # A tenant that only a backend names has the default's settings, and that backend.
        tenants = {*named, *(tenant for backend in backends for tenant in backend.tenants)}
        self._named = {tenant: _policy(named.get(tenant, settings.default), backends, tenant) for tenant in tenants}

    def of(self, tenant: str) -> Policy:
        """Return the policy of a tenant."""
        return self._named.get(tenant, self.default)

    def names(self, tenant: str) -> bool:
        """Return True if the configuration names a tenant."""
        return tenant in self._named

    @property
    def all(self) -> Collection[Policy]:
        """Return all policies, the default one first."""
        return (self.default, *self._named.values())


def _policy(settings: PolicySettings, backends: Collection[BackendSettings], tenant: str | None) -> Policy:
    """Return the policy of a tenant; None: of all tenants that the configuration does not name."""
    wanted = frozenset(settings.labels)
    labelled = [backend for backend in backends if not wanted or wanted.intersection(backend.labels)]
    own = frozenset(backend.name for backend in labelled if tenant in backend.tenants)
    names = frozenset(backend.name for backend in labelled if not backend.tenants) | own
    # If the tenant may use all backends, there is no set, so that it shares the merged catalogue of all.
    allowed = names if wanted or len(names) < len(backends) else None
    nodes, models = settings.nodes.deny, settings.models.deny
    is_free = allowed is None and not (nodes or models)
    view = None if is_free else View(allowed, nodes, models)
    slashed = [pattern.replace("\\", "/").casefold() for pattern in models]
    return Policy(
        view,
        settings.deadline,
        settings.limits,
        Patterns(nodes),
        Patterns(slashed),
        Patterns(settings.nodes.trust),
        own,
        frozenset(backend.name for backend in backends if backend.tenants and tenant not in backend.tenants),
        settings.routing,
        settings.weight,
        settings.max_priority,
        settings.require,
    )


@dataclass(frozen=True, slots=True)
class Denied:
    """A name in a prompt that its tenant may not use: a node class, or the model of an input."""

    node_id: str
    class_type: str
    title: Any = None
    input_name: str | None = None
    value: str = ""

    @property
    def sentence(self) -> str:
        """Return a sentence that tells people what is not allowed."""
        if self.input_name is None:
            return f"Node class '{self.class_type}' is not allowed for {CALLER}"
        return f"Model '{self.value}' is not allowed for {CALLER}"
