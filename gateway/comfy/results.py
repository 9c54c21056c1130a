"""Tells the results that nodes send over the WebSocket from the previews that samplers show on their way. Pure.

SaveImageWebsocket sends its pictures as previews (custom_nodes/websocket_image_save.py), so the form of a message does
not tell; the node that sends it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

from gateway.comfy.previews import PNG, TEXT


class Sender(Enum):
    """A kind of node, by the description of its class.

    SAVER: an output node that hands nothing on. BOTH: one that hands something on, and may sample as well. SAMPLER: no
    output node. UNKNOWN: its class is not known, or it was made while the prompt ran.
    """

    SAVER = auto()
    BOTH = auto()
    SAMPLER = auto()
    UNKNOWN = auto()


def sender_of(description: Mapping[str, Any] | None) -> Sender:
    """Return the kind of a class's nodes, by its entry in /object_info."""
    if not isinstance(description, Mapping):
        return Sender.UNKNOWN
    if description.get("output_node") is not True:
        return Sender.SAMPLER
    return Sender.BOTH if description.get("output") else Sender.SAVER


def is_result(type_: int | None, image_type: str | None, sender: Sender) -> bool:
    """Return True if a binary message is a result, and False for a preview or a word on the way.

    Args:
        type_: its event type.
        image_type: the type of its picture; None if it has none.
    """
    if type_ == TEXT:
        # ComfyUI's own nodes say there how far they are (server.py, send_progress_text).
        return False
    if sender in (Sender.SAVER, Sender.SAMPLER):
        return sender is Sender.SAVER
    # Previews of latents are JPEG files (latent_preview.py), what is saved is a PNG file.
    return image_type == PNG
