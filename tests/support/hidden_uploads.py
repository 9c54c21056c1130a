"""Uploads with a secret, and all surfaces that may show it."""

from __future__ import annotations

import json
import re

from tests.support.comfy_client import Comfy

SECRET = re.compile(r"(?<![0-9a-f])[uo][/\\-]+[0-9a-f]{32}")


async def surfaces(comfy: Comfy, *jobs: str) -> str:
    """All that a caller can read about its jobs and about files."""
    paths = ("/history", "/queue", "/api/jobs", "/object_info", *(f"/api/jobs/{job}" for job in jobs))
    return json.dumps([await comfy.get(path) for path in paths])
