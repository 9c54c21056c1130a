"""What a role may call: paths that run code, or touch others, are for admins alone."""

from __future__ import annotations

import re

from gateway.tenants.keys import Identity, Role

# ComfyUI's own that touch everybody, and what ComfyUI-Manager adds. Without the /api that may come before each.
ADMIN_PREFIXES = (
    "/free",
    "/internal",
    "/manager",
    "/customnode",
    "/snapshot",
    "/externalmodel",
    "/comfyui_manager",
    "/v2/manager",
    "/v2/customnode",
    "/v2/snapshot",
    "/v2/comfyui_manager",
    "/v2/externalmodel",
    "/gateway",
)
# These list what everybody made (app/assets); an isolated tenant must not see it. /assets alone is the web UI's own.
SHOWS_ALL = ("/api/assets",)
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
# Open too, but not to pages of other origins.
SIGN_IN_PATHS = frozenset({"/gateway/signin", "/gateway/signout"})


# A browser asks for a page's manifest without its cookies (W3C, Web Application Manifest); nothing in it is anybody's.
_MANIFEST = re.compile(r"^/(assets/)?manifest[\w.-]*\.(json|webmanifest)$")


def is_manifest(path: str) -> bool:
    """Whether it is the web UI's manifest, which needs no key."""
    return _MANIFEST.match(path) is not None


def without_api(path: str) -> str:
    """A route's own path: every one is there with and without /api (server.py, add_routes)."""
    return path.removeprefix("/api") if path.startswith("/api/") else path


def may_call(identity: Identity, path: str) -> bool:
    """Whether a caller may use a path at all."""
    if identity.role is Role.METRICS:
        return path == "/metrics"
    if identity.is_admin:
        return True
    if identity.isolated and _is_below(path, SHOWS_ALL):
        return False
    return not is_admin_path(without_api(path))


def is_admin_path(path: str) -> bool:
    """Whether a path, without /api, is for admins alone. Spelling tricks count as the path that they lead to."""
    return _is_below(path, ADMIN_PREFIXES)


def _is_below(path: str, prefixes: tuple[str, ...]) -> bool:
    normal = "/" + "/".join(part for part in path.lower().split("/") if part not in ("", "."))
    return any(normal == prefix or normal.startswith(prefix + "/") for prefix in prefixes)
