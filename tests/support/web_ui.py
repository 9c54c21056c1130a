"""Feature flags that ComfyUI's web UI declares."""

from __future__ import annotations

# What the web UI says of itself.
WEB_UI = {
    "supports_preview_metadata": True,
    "supports_manager_v4_ui": True,
    "supports_progress_text_metadata": True,
}
