"""Routes of well-known packs that act on the process behind them, as data. A row holds if one of its classes is there.

Paths are without the /api that ComfyUI puts before each route as well. Each row names the pack's files in which its
routes are. A pack of another version may have others, which are treated as unknown paths.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator
from dataclasses import dataclass
from enum import StrEnum


class Keeps(StrEnum):
    """State that stands behind a path.

    STATE: in the process, under ids or for a session, so that what belongs together must go to one process. WAITING:
    a node of a running prompt waits for the request. NOTHING: files and settings, so that the primary is right.
    """

    STATE = "state"
    WAITING = "waiting"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class PackRoutes:
    """The paths of one pack that keep the same kind of state, and classes by which the pack is recognized."""

    pack: str
    classes: tuple[str, ...]
    prefixes: tuple[str, ...]
    keeps: Keeps


_TOOLING = ("ETN_LoadImageCache", "ETN_SaveImageCache", "ETN_LoadImageBase64")
_IMPACT = ("ImpactWildcardProcessor", "PreviewBridge", "SAMLoader")
_EASY_USE = ("easy imageChooser", "easy promptAwait", "easy fullLoader")
_ALEKPET = ("PainterNode", "IDENode")
_CHOOSERS = ("Preview Chooser", "Preview Chooser Fabric", "Simple Chooser")
_FILTERS = ("Image Filter", "Text Image Filter", "Mask Image Filter")

KNOWN: tuple[PackRoutes, ...] = (
    # api.py, nodes.py: pictures in memory under ids, which prompts name and from which results are fetched.
    PackRoutes("comfyui-tooling-nodes", _TOOLING, ("/etn/image",), Keeps.STATE),
    # api.py: writes model files. Workflows are published to the subscribers of one process.
    PackRoutes("comfyui-tooling-nodes", _TOOLING, ("/etn",), Keeps.NOTHING),
    # image_chooser_server.py: a form with the node's `id`, or -1 for "start" and "cancel", and a `message`.
    PackRoutes("cg-image-picker", _CHOOSERS, ("/image_chooser_message",), Keeps.WAITING),
    # image_filter_messaging.py: a form, whose `response` is JSON with the workflow's `graph_id`. Another graph_id than
    # that of the waiting node is answered with 200 and ignored. A process holds one waiting node.
    PackRoutes("cg-image-filter", _FILTERS, ("/cg-image-filter-message",), Keeps.WAITING),
    # impact_server.py: one SAM predictor is prepared, asked and released; nothing names it.
    PackRoutes("ComfyUI-Impact-Pack", _IMPACT, ("/sam",), Keeps.STATE),
    # impact_server.py: the only POST fills in wildcards. PreviewBridge and the SEGS picker keep pictures in a process,
    # by `$node-number` and by the node's id; GETs set and show them, and any backend gets those.
    PackRoutes("ComfyUI-Impact-Pack", _IMPACT, ("/impact",), Keeps.NOTHING),
    # libs/chooser.py: JSON with `node_id`. libs/messages.py: a form with the node's `id`.
    PackRoutes(
        "ComfyUI-Easy-Use",
        _EASY_USE,
        ("/easyuse/image_chooser_message", "/easyuse/message_callback"),
        Keeps.WAITING,
    ),
    # routes.py, stability.py: files, keys, and the caches of one process.
    PackRoutes("ComfyUI-Easy-Use", _EASY_USE, ("/easyuse",), Keeps.NOTHING),
    # painter_node.py, ide_node.py: JSON with the node's `unique_id`, for which the node waits some seconds.
    PackRoutes(
        "ComfyUI_Custom_Nodes_AlekPet",
        _ALEKPET,
        ("/alekpet/check_canvas_changed", "/alekpet/ide_node_check_js_complete"),
        Keeps.WAITING,
    ),
    # painter_node.py, ide_node.py, google_translate_node.py: settings and code in files.
    PackRoutes("ComfyUI_Custom_Nodes_AlekPet", _ALEKPET, ("/alekpet",), Keeps.NOTHING),
    # inspire_server.py: settings of one process's cache, whose keys users choose.
    PackRoutes(
        "ComfyUI-Inspire-Pack",
        ("CacheBackendData //Inspire", "ShowCachedInfo //Inspire"),
        ("/inspire",),
        Keeps.NOTHING,
    ),
    # routes_config.py, routes_model_info.py: settings and facts of models, in files.
    PackRoutes("rgthree-comfy", ("Power Lora Loader (rgthree)", "Seed (rgthree)"), ("/rgthree",), Keeps.NOTHING),
    # autocomplete.py, better_combos.py, model_info.py, workflows.py: files.
    PackRoutes("ComfyUI-Custom-Scripts", ("ShowText|pysssss", "MathExpression|pysssss"), ("/pysssss",), Keeps.NOTHING),
    # __init__.py: files, and a language model elsewhere. POST /mixlab/prompt queues a prompt of which no gateway knows.
    PackRoutes("comfyui-mixlab-nodes", ("AppInfo", "ScreenShare"), ("/mixlab", "/chat/completions"), Keeps.NOTHING),
    # monitor.py: switches of one process's monitor.
    PackRoutes("ComfyUI-Crystools", ("Show any [Crystools]",), ("/crystools",), Keeps.NOTHING),
    # server.py: GETs of files.
    PackRoutes(
        "ComfyUI-VideoHelperSuite",
        ("VHS_VideoCombine", "VHS_LoadVideo"),
        ("/vhs", "/viewvideo", "/getpath"),
        Keeps.NOTHING,
    ),
    # __init__.py: static files.
    PackRoutes("ComfyUI-KJNodes", ("ImageBatchMulti", "ColorMatch"), ("/kjweb_async",), Keeps.NOTHING),
)
# Classes that wait for a request which names the node's id or the workflow's alone, so that two must not run at once.
INTERACTIVE = frozenset({*_CHOOSERS, *_FILTERS, *_ALEKPET, "easy imageChooser", "easy promptAwait"})
# ComfyUI's own routes that are passed on, and ComfyUI-Manager's: they act on files and settings of the primary.
OWN_PREFIXES = (
    *("/internal", "/users", "/settings", "/userdata", "/assets", "/tags", "/manager", "/customnode", "/snapshot"),
    *("/externalmodel", "/comfyui_manager", "/v2/userdata", "/v2/manager", "/v2/customnode", "/v2/snapshot"),
    *("/v2/externalmodel", "/v2/comfyui_manager"),
)


def known_prefixes(classes: Container[str] | None) -> Iterator[tuple[str, Keeps]]:
    """Yield the prefixes of ComfyUI's own routes, and of the packs that have one of these classes.

    Args:
        classes: the names of the fleet's node classes; None while they are not known.
    """
    for prefix in OWN_PREFIXES:
        yield prefix, Keeps.NOTHING
    for row in KNOWN:
        if classes is not None and any(name in classes for name in row.classes):
            for prefix in row.prefixes:
                yield prefix, row.keeps


def packs() -> Collection[str]:
    """Return the names of the known packs."""
    return dict.fromkeys(row.pack for row in KNOWN)
