"""Policies of tenants: the backends, node classes and models that each may use. Pure; `Policies.of` is one look-up."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from typing import Any

from gateway.settings import BackendSettings, LimitSettings, PolicySettings, TenantSettings

# What a refusal calls whoever asked, where the tenant is known alone: some of its callers may have no key.
CALLER = "this caller"
# The error for a tenant that lacks backends.
NO_BACKEND = f"No backend may be used by {CALLER}"
NO_BACKEND_HINT = "every backend is dedicated to other tenants; the operator can share one, or add this tenant to one"
# An embedding is named inside a text (comfy/sd1_clip.py, SDTokenizer); its suffix may be left out.
_EMBEDDING = re.compile(r"embedding:([^\s,()<>\[\]]+)", re.IGNORECASE)
# PATH_MAX of Linux; and the embeddings that are looked up in one text.
_MAX_PATH = 4_096
_MAX_EMBEDDINGS = 1_000


@dataclass(frozen=True, slots=True)
class View:
    """What a tenant sees of the fleet, if not all of it: tenants with equal views share what is made for them.

    `allowed` are the names of the backends, None for all; `nodes` and `models` the patterns of what is refused.
    """

    allowed: frozenset[str] | None
    nodes: tuple[str, ...]
    models: tuple[str, ...]

    def may_use(self, backend: str) -> bool:
        """Whether a backend is one of those that are allowed."""
        return self.allowed is None or backend in self.allowed


class Patterns:
    """Glob patterns, compiled once; none matches nothing."""

    def __init__(self, patterns: Sequence[str], flags: int = 0) -> None:
        self._compiled = re.compile("|".join(map(translate, patterns)), flags) if patterns else None

    def __bool__(self) -> bool:
        return self._compiled is not None

    def match(self, text: str) -> bool:
        """Whether one of them fits the whole text."""
        return self._compiled is not None and self._compiled.match(text) is not None


@dataclass(frozen=True, slots=True)
class Policy:
    """What holds for a tenant. `view` is None for one that may use all there is."""

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

    @property
    def allowed(self) -> frozenset[str] | None:
        """The backends that its jobs may go to; None for all."""
        return self.view.allowed if self.view is not None else None

    @property
    def lacks_backends(self) -> bool:
        """Return True if every backend is dedicated to other tenants."""
        return self.allowed is not None and not self.allowed

    def denies_node(self, class_type: str) -> bool:
        """Whether a node class is refused. Its name is exact: ComfyUI looks it up as it stands."""
        return self.nodes.match(class_type)

    def trusts(self, class_type: str, pack: str) -> bool:
        """Return True if the operator trusts a class, by its name or by the name of its pack, both exact."""
        return self.trusted.match(class_type) or self.trusted.match(pack)

    def denies_model(self, name: str) -> bool:
        """Whether a model is refused: by its path in its folder, or by its file name alone.

        Separators of either kind, letters of either case, ``./`` and trailing dots and blanks make no other model:
        some file system takes them for the same.
        """
        if not self.models:
            return False
        if len(name) > _MAX_PATH:
            # ComfyUI may make a short path of it (folder_paths.py, get_full_path).
            return True
        path = plain_path(name)
        return self.models.match(path) or self.models.match(path.rpartition("/")[2])

    def denies_embedding(self, text: str) -> str | None:
        """The embedding in a text that is refused, if any."""
        if self.models and (count := text.lower().count("embedding:")):
            if count > _MAX_EMBEDDINGS:
                return f"more than {_MAX_EMBEDDINGS} names"
            return next((name for name in _EMBEDDING.findall(text) if self._denies_bare(name)), None)
        return None

    def _denies_bare(self, name: str) -> bool:
        # It may be the name of any kind of file that holds embeddings (comfy/sd1_clip.py, load_embed).
        return any(self.denies_model(name + suffix) for suffix in ("", ".safetensors", ".pt", ".bin"))


def plain_path(name: str) -> str:
    """A model's path in one spelling, in lower case; it never leads out of its folder."""
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
        # The patterns of what tenants trust unless they are named otherwise.
        self.trust = settings.default.nodes.trust
        # A tenant that only a backend names has the default's settings, and that backend.
        tenants = {*named, *(tenant for backend in backends for tenant in backend.tenants)}
        self._named = {tenant: _policy(named.get(tenant, settings.default), backends, tenant) for tenant in tenants}

    def of(self, tenant: str) -> Policy:
        """What holds for a tenant."""
        return self._named.get(tenant, self.default)

    def names(self, tenant: str) -> bool:
        """Return True if the configuration names a tenant."""
        return tenant in self._named

    @property
    def all(self) -> Collection[Policy]:
        """Each policy that there is."""
        return (self.default, *self._named.values())


def _policy(settings: PolicySettings, backends: Collection[BackendSettings], tenant: str | None) -> Policy:
    """Return the policy of a tenant; None: of all tenants that the configuration does not name."""
    wanted = frozenset(settings.labels)
    labelled = [backend for backend in backends if not wanted or wanted.intersection(backend.labels)]
    own = frozenset(backend.name for backend in labelled if tenant in backend.tenants)
    names = frozenset(backend.name for backend in labelled if not backend.tenants) | own
    # If the tenant may use all, there is no set, so that it shares what is made for all.
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
    )


@dataclass(frozen=True, slots=True)
class Denied:
    """What a prompt names and its tenant may not use: a node class, or a model of an input."""

    node_id: str
    class_type: str
    title: Any = None
    input_name: str | None = None
    value: str = ""

    @property
    def sentence(self) -> str:
        """What is wrong, for people."""
        if self.input_name is None:
            return f"Node class '{self.class_type}' is not allowed for {CALLER}"
        return f"Model '{self.value}' is not allowed for {CALLER}"
