"""Routes of well-known packs that act on the process behind them, as data. A row holds if one of its classes is there.

Paths are without the /api that ComfyUI puts before each route as well. What is listed is known of the packs' public
routes; a pack of another version may have others, which are treated as unknown paths.
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


KNOWN: tuple[PackRoutes, ...] = (
    # krita-ai-diffusion puts pictures into memory, runs prompts that name their ids, and fetches results by ids.
    PackRoutes(
        "comfyui-tooling-nodes",
        ("ETN_LoadImageCache", "ETN_SaveImageCache", "ETN_LoadImageBase64"),
        ("/etn/image",),
        Keeps.STATE,
    ),
    # A workflow is published to one process, and others subscribe to it there.
    PackRoutes("comfyui-tooling-nodes", ("ETN_LoadImageCache", "ETN_LoadImageBase64"), ("/etn",), Keeps.NOTHING),
    PackRoutes(
        "cg-image-picker", ("Preview Chooser", "Preview Chooser Fabric"), ("/image_chooser_message",), Keeps.WAITING
    ),
    PackRoutes(
        "cg-image-filter",
        ("Image Filter", "Text Image Filter", "Mask Image Filter"),
        ("/cg-image-filter-message",),
        Keeps.WAITING,
    ),
    # The SAM detector is prepared, asked and released; the bridge's picture is kept under an id.
    PackRoutes(
        "ComfyUI-Impact-Pack",
        ("ImpactWildcardProcessor", "PreviewBridge", "SAMLoader"),
        ("/sam", "/impact/set", "/impact/get", "/impact/validate"),
        Keeps.STATE,
    ),
    PackRoutes(
        "ComfyUI-Impact-Pack", ("ImpactWildcardProcessor", "PreviewBridge", "SAMLoader"), ("/impact",), Keeps.NOTHING
    ),
    PackRoutes(
        "ComfyUI-Easy-Use",
        ("easy imageChooser", "easy fullLoader"),
        ("/easyuse/image_chooser_message",),
        Keeps.WAITING,
    ),
    PackRoutes("ComfyUI-Easy-Use", ("easy imageChooser", "easy fullLoader"), ("/easyuse",), Keeps.NOTHING),
    PackRoutes("rgthree-comfy", ("Power Lora Loader (rgthree)", "Seed (rgthree)"), ("/rgthree",), Keeps.NOTHING),
    PackRoutes("ComfyUI-Custom-Scripts", ("ShowText|pysssss", "MathExpression|pysssss"), ("/pysssss",), Keeps.NOTHING),
    PackRoutes("comfyui-mixlab-nodes", ("AppInfo", "ScreenShare"), ("/mixlab",), Keeps.NOTHING),
    PackRoutes("ComfyUI-Crystools", ("Show any [Crystools]",), ("/crystools",), Keeps.NOTHING),
    PackRoutes("ComfyUI-VideoHelperSuite", ("VHS_VideoCombine", "VHS_LoadVideo"), ("/vhs",), Keeps.NOTHING),
    PackRoutes("ComfyUI-KJNodes", ("ImageBatchMulti", "ColorMatch"), ("/kjnodes", "/kjweb_async"), Keeps.NOTHING),
)
# Classes that wait for a request which names the node's id alone, so that two of them must not run at once.
INTERACTIVE = frozenset(
    {
        *("Preview Chooser", "Preview Chooser Fabric", "easy imageChooser"),
        *("Image Filter", "Text Image Filter", "Mask Image Filter"),
    }
)
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
