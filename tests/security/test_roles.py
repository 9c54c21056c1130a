"""The table of roles, walked: every route that the application has, with every role, over running gateways."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from gateway.app import Gateway
from gateway.settings import ServerSettings, Settings
from gateway.tenants.roles import TABLE, Access, Roles
from gateway.web.app import COMFYUI, JOBS, OWN, make_app
from gateway.web.v2.table import REST
from gateway.web.v2.table import ROUTES as V2_ROUTES
from tests.support.lab import Lab
from tests.support.security_world import ask, caller, start

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
# For each caller, what it may use; the two gateways differ in what tenants see of each other.
APART = {
    "": {Access.ANYBODY},
    "monitor": {Access.ANYBODY, Access.MONITORING},
    "anna": {Access.ANYBODY, Access.USERS},
    "boss": set(Access),
}
TEAM = {
    "": {Access.ANYBODY, Access.USERS},
    "mate": {Access.ANYBODY, Access.USERS, Access.TEAM},
    "other": {Access.ANYBODY, Access.USERS},
    "boss": set(Access),
}
FILLED = {"kind": "output", "action": "drain", "path": "checkpoints/0/x", "rest": "/nothing"}
PASSED_ON = (
    "/ /index.html /extensions/x.js /pysssss/x /nothing /api/assets /api/api/assets/1/content /api/tags /users/x "
    "/vhs/getpath /internal/logs /api/internal/folder_paths /internal/logs/subscribe /manager/reboot "
    "/api/v2/manager/queue/install "
    "/customnode/getlist /snapshot/restore /externalmodel/getlist /v2/comfyui_manager/x /gateway /gateway/x /free/x "
    "/%69nternal/logs /internal%2Flogs /INTERNAL/logs //internal/logs /./manager/reboot /api//manager/reboot"
).split()
# What nobody but an admin may ever call, whatever the table says.
NEVER_USERS = {
    ("POST", "/free"),
    ("GET", "/internal/files/{kind}"),
    ("GET", "/gateway/backends"),
    ("GET", "/gateway/packs"),
    ("POST", "/gateway/backends/{name}/{action:drain|resume}"),
}


def path_of(template: str) -> str:
    """A path that a route answers."""
    return re.sub(r"\{(\w+)(:[^}]*)?\}", lambda found: FILLED.get(found[1], "x"), template)


def shown(template: str) -> str:
    """A route's template without the patterns of its variables."""
    return re.sub(r"\{(\w+):.*?\}(?=/|$)", r"{\1}", template)


async def routes_of_the_application(directory: Path) -> list[tuple[str, str]]:
    """Every (method, template) that a gateway's application has, save those that pass on what they get."""
    gateway = Gateway(Settings(server=ServerSettings(port=0), data_dir=directory))
    await gateway.start()
    try:
        app = make_app(gateway.parts, gateway.v2)
    finally:
        await gateway.close()
    found = []
    for route in app.router.routes():
        assert route.resource is not None
        info = route.resource.get_info()
        template = str(info.get("path") or info["formatter"])
        if template != "/{path}":
            found.append((route.method, template))
    return found


async def test_every_route_has_a_row_of_its_own(tmp_path: Path) -> None:
    """Enumerated from the application: one that was added without a row fails here, and stops a gateway's start."""
    routes = await routes_of_the_application(tmp_path)
    assert len(routes) > 90
    roles = Roles()
    for method, template in routes:
        assert roles.of_route(method, template) in Access, (method, template)
    known = {(method, re.sub(r"\{(\w+):[^}]*\}", r"{\1}", path)) for method, path, _ in OWN}
    known |= {
        (m, re.sub(r"\{(\w+):[^}]*\}", r"{\1}", f"{api}{p}")) for m, p, _ in JOBS + COMFYUI for api in ("", "/api")
    }
    known |= {(method, shown(path)) for method, path, _ in V2_ROUTES if method != "HEAD"}
    known |= {(method, shown(REST)) for method in ("GET", "POST", "PUT", "PATCH", "DELETE")}
    assert {route for route in routes if route[0] != "HEAD"} == known
    with pytest.raises(LookupError, match="has no row"):
        roles.of_route("GET", "/gateway/new")


def test_the_table_says_nothing_of_routes_that_are_not_there() -> None:
    """A row for a route that is gone would open the next one of that name."""
    there = {re.sub(r"\{(\w+):[^}]*\}", r"{\1}", path) for _, path, _ in OWN + JOBS + COMFYUI}
    there |= {shown(path) for _, path, _ in V2_ROUTES} | {shown(REST)}
    ui = {
        "/",
        "/index.html",
        "/materialdesignicons.min.css",
        "/favicon.ico",
        "/user.css",
        "/i18n",
        "/node_replacements",
    }
    assert {row.path for row in TABLE if not row.path.endswith("/**")} - ui == there
    for method, template in NEVER_USERS:
        assert Roles().of_route(method, template) is Access.ADMINS


async def test_every_route_with_every_role(lab: Lab, tmp_path: Path) -> None:
    """401 without a key, 403 with one that is not enough, and neither with one that is."""
    simulator = await lab.simulator()
    apart = await start(lab, simulator)
    team = await start(lab, simulator, isolation="shared", anonymous=True, tenants={"other": "customer"}, data="team")
    roles = Roles()
    routes = await routes_of_the_application(tmp_path / "enumerated")
    asked = [(method, path_of(template), roles.of_route(method, template)) for method, template in routes]
    asked += [(method, path, roles.of_path(method, path)) for path in PASSED_ON for method in METHODS]
    wrong: list[object] = []

    async def check(gateway: object, name: str, method: str, path: str, access: Access, allowed: set[Access]) -> None:
        comfy = caller(lab, apart if gateway is apart else team, name)
        body = {"clientId": "x", "enabled": False} if method not in ("GET", "HEAD") else None
        seen = await ask(comfy, method, path, body)
        if (method, path) == ("POST", "/gateway/signin"):
            # It is about the key in its form, and there is none.
            right = seen.status == 401
        elif access in allowed:
            right = seen.status not in (401, 403)
        else:
            right = seen.status == (401 if not name and gateway is apart else 403)
        if not right or seen.status == 500:
            wrong.append((name or "nobody", method, path, access, seen.status, seen.body[:200]))

    for gateway, callers in ((apart, APART), (team, TEAM)):
        for name, allowed in callers.items():
            for start_at in range(0, len(asked), 20):
                some = asked[start_at : start_at + 20]
                await asyncio.gather(*(check(gateway, name, *each, allowed) for each in some))
    assert not wrong
    assert {access for _, _, access in asked} == set(Access)


def test_the_documented_table_is_the_table() -> None:
    """Every row's path stands in docs/security.md, in a line of the table that names who."""
    text = (Path(__file__).parent.parent.parent / "docs" / "security.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    words = {
        Access.ANYBODY: "anybody",
        Access.MONITORING: "metrics and admin keys",
        Access.USERS: "users",
        Access.TEAM: "users who are not kept apart",
        Access.ADMINS: "admins",
    }
    for row in TABLE:
        path = row.path.removesuffix("/**").removeprefix("/v2") or "/"
        shown = [line for line in lines if line.startswith(f"| {words[row.access]}") and f"`{path}`" in line]
        assert shown or row.path == "/**" or row.path == "/v2/userdata", row
