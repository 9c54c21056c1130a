"""Path prefixes: the path before the gateway's own paths, such as ``/comfy`` on a host with other services. Pure."""

from __future__ import annotations

import re

MAX_PREFIX = 128
# Segments of unreserved characters (RFC 3986, section 2.3). None begins with a dot, because browsers resolve ``..``.
_SEGMENTS = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*")
# First segments of routes of the gateway and of ComfyUI. A prefix of that name would take requests for them away.
RESERVED = frozenset(
    """api assets browser comfyui_manager cursor customnode docs easyuse embeddings experiment extensions
    externalmodel favicon.ico features fonts free gateway getpath global_subgraphs healthz history i18n impact
    index.html inspire internal interrupt lib lm manager materialdesignicons.min.css metrics models
    node_replacements object_info prompt queue readyz rgthree scripts settings snapshot system_stats templates
    upload user.css userdata users v2 vhs view view_metadata workflow_templates workspace ws""".split()
)


def path_prefix(text: str) -> str | None:
    """Return a prefix without its last slash, empty for ``/``; None if the text is no path of plain segments."""
    prefix = text.removesuffix("/")
    return prefix if len(prefix) <= MAX_PREFIX and _SEGMENTS.fullmatch(prefix) else None


def checked_base_path(text: str) -> str:
    """Return the prefix that ``server.base_path`` gives.

    Raises:
        ValueError: the text is no path of plain segments, or begins as a route does.
    """
    prefix = path_prefix(text)
    if prefix is None:
        raise ValueError(
            f"must be a path such as /comfy, of at most {MAX_PREFIX} letters, digits and . _ ~ - in its segments, "
            "without host, query and percent-encoding"
        )
    first = prefix[1:].partition("/")[0].casefold()
    if first in RESERVED:
        raise ValueError(f"must not begin with /{first}, because that is a route; give another name, such as /comfy")
    return prefix
