"""A walk put together: a gateway, the victim, the attacker and the prompts."""

from __future__ import annotations

import fnmatch
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.security.walk import unchecked
from tests.security.walk.attacks import Targets
from tests.security.walk.graphs import Recipes
from tests.security.walk.run import Case, Figures, Walk, cases
from tests.security.walk.victim import Disk, Victim, attackers_files
from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab

_KEYS = {name: f"{name}-key-of-the-walk-0123456789" for name in ("anna", "ben", "boss")}


async def _gateway(lab: Lab, url: str, trust: Sequence[str], *, is_checked: bool, stores: bool) -> GatewayProcess:
    """Start a gateway before a ComfyUI, with keys of isolated tenants."""
    keys = [{"name": name, "key": key, "role": "admin" if name == "boss" else "user"} for name, key in _KEYS.items()]
    # The limit on unknown names would stop the walk; what it is there for is tested elsewhere.
    limits = {"bad_names_per_minute": None, "bad_names_per_prompt": None}
    config: dict[str, Any] = {
        "auth": {"keys": keys, "isolation": "isolated"},
        "tenants": {"default": {"nodes": {"trust": list(trust)}, "limits": limits}},
    }
    if stores:
        folder = lab.directory / "store"
        config["storage"] = {"url": folder.as_uri(), "when": "before", "kinds": ["output", "temp"], "links": "signed"}
    path = lab.directory / "gateway.yaml"
    path.write_text(json.dumps(config))
    gateway = GatewayProcess(lab.directory / "data", [url], ("--config", str(path)), {"probe__interval": 0.25})
    if not is_checked:
        gateway.arguments[0] = unchecked.__name__
    lab.servers.append(gateway)
    await gateway.start()
    await lab.backends_up(gateway, 1)
    return gateway


@dataclass(frozen=True, slots=True)
class Prepared:
    """A walk that can begin: the victim's files are there, and the prompts are known."""

    walk: Walk
    victim: Victim
    targets: Targets
    cases: list[Case]
    figures: Figures


async def prepare(
    lab: Lab,
    url: str,
    base: Path | None,
    *,
    trust: Sequence[str] = (),
    globs: Sequence[str] = ("*",),
    seed: int = 1,
    is_checked: bool = True,
    stores: bool = False,
) -> Prepared:
    """Start a gateway before a ComfyUI and make the victim's files.

    Args:
        base: ComfyUI's base directory, None if unknown.
        trust: packs and classes that the operator trusts.
        globs: patterns of the classes to walk.
        is_checked: False to let all names pass, so that secret folders alone keep files apart. Previews lie in none.
        stores: True to keep outputs and previews in object storage, and to sign links to them.
    """
    gateway = await _gateway(lab, url, trust, is_checked=is_checked, stores=stores)
    anna, ben = (Comfy(lab.http, gateway.url, X_API_Key=_KEYS[name]) for name in ("anna", "ben"))
    marker = lab.directory / "host" / "marker.txt"
    victim = Victim(anna, await anna.get("/object_info"), random.Random(seed))
    targets = await victim.make(marker, str(base or ""))
    own, playlists = await attackers_files(ben, targets, str(base or ""))
    targets = replace(targets, playlists=playlists)
    victim.secrets.notes |= {str(base)} if base else set()
    if not is_checked:
        victim.secrets.pictures[:] = [each for each in victim.secrets.pictures if each.name != "temp"]
    info = await ben.get("/object_info")
    recipes, figures = Recipes(info, own), Figures()
    chosen = [name for name in recipes.classes() if any(fnmatch.fnmatchcase(name, glob) for glob in globs)]
    found = cases(recipes, targets, info, chosen, figures)
    figures.counts["prompts"] = len(found)
    walk = Walk(ben, recipes, victim.secrets, Disk(base, marker), figures)
    return Prepared(walk, victim, targets, found, figures)
