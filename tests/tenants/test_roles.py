"""The table of roles: what a path comes to, which row counts, who may."""

from __future__ import annotations

import pytest

from gateway.settings import RouteSettings
from gateway.tenants.keys import LOCAL, Identity, Role
from gateway.tenants.roles import TABLE, Access, AnsweredHere, Roles, Row, may, operators_rows, plain

USER = Identity("u", "u", Role.USER, isolated=True)
TEAM_MATE = Identity("t", "team", Role.USER, isolated=False)
ADMIN = Identity("a", "a", Role.ADMIN, isolated=True)
MONITOR = Identity("m", "m", Role.METRICS, isolated=True)


@pytest.mark.parametrize(
    ("path", "access"),
    [
        (path, access)
        for access, paths in {
            Access.ADMINS: (
                "/free /FREE //free /./internal/logs /internal /%2569nternal/logs /api/internal /api/api/internal/logs "
                "/manager/reboot /v2/manager/queue /api/v2/manager/queue /customnode/getlist /snapshot/save "
                "/externalmodel/getlist /comfyui_manager/x /users/x /gateway/backends /gateway/nothing /gateway "
                "/internal\\logs /internal%2Flogs /easyuse/reboot /api/easyuse/reboot /inspire/cache/remove "
                "/rgthree/api/loras/info/clear /rgthree/api/checkpoints/info/refresh /easyuse/stability/api_keys "
                "/api/lm/download-model-get /lm/resume-download"
            ),
            Access.TEAM: (
                "/api/assets /api/assets/x/content /api/api/assets /API/assets //api//assets /api/tags /getpath "
                "/vhs/getpath /impact/segs/picker/view /impact/get/pb_id_image /inspire/cache/list"
            ),
            Access.USERS: (
                "/ /internals /assets/index.js /tags /vhs/view /extensions/x.js /pysssss/x //healthz /users "
                "/impact/wildcards/list /easyuse/version /rgthree/api/loras/info"
            ),
        }.items()
        for path in paths.split()
    ],
)
def test_reading(path: str, access: Access) -> None:
    assert Roles().of_path("GET", path) is access
    assert Roles().of_path("HEAD", path) is access


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "path", ["/", "/x", "/extensions/x", "/api/assets", "/users", "//prompt2", "/settings2", "/metrics"]
)
def test_unknown_writes_are_for_admins(method: str, path: str) -> None:
    assert Roles().of_path(method, path) is Access.ADMINS


def test_who_may() -> None:
    expected = {
        Access.ANYBODY: (True, True, True, True, True),
        Access.MONITORING: (False, False, True, True, True),
        Access.USERS: (True, True, True, True, False),
        Access.TEAM: (False, True, True, True, False),
        Access.ADMINS: (False, False, True, True, False),
    }
    callers = (USER, TEAM_MATE, ADMIN, LOCAL, MONITOR)
    assert {access: tuple(may(caller, access) for caller in callers) for access in Access} == expected


def test_a_route_without_a_row_is_an_error() -> None:
    roles = Roles()
    assert roles.of_route("GET", "/api/api/jobs") is Access.USERS
    assert roles.of_route("HEAD", "/queue") is Access.USERS
    assert roles.of_route("POST", "/gateway/backends/{name}/{action:drain|resume}") is Access.ADMINS
    for method, template in (("GET", "/gateway/new"), ("PUT", "/queue"), ("GET", "/jobs"), ("GET", "/nowhere")):
        with pytest.raises(LookupError, match="has no row"):
            roles.of_route(method, template)


def test_an_operators_rows() -> None:
    settings = RouteSettings(
        users=("POST /rgthree", "/manager/badge"), admins=("/browser2", "POST /upload"), unknown_reads="admins"
    )
    roles = Roles(operators_rows(settings))
    expected = {
        ("POST", "/api/rgthree/x"): Access.USERS,
        ("PUT", "/rgthree/x"): Access.ADMINS,
        ("GET", "/manager/badge/1"): Access.USERS,
        ("GET", "/manager/badges"): Access.ADMINS,
        ("GET", "/browser2/x"): Access.ADMINS,
        ("GET", "/pysssss"): Access.ADMINS,
        ("GET", "/extensions/core/x.js"): Access.USERS,
        ("GET", "/"): Access.USERS,
    }
    assert {asked: roles.of_path(*asked) for asked in expected} == expected
    assert roles.of_route("POST", "/api/upload/mask") is Access.ADMINS
    assert roles.of_route("GET", "/queue") is Access.USERS
    assert roles.of_route("GET", "/healthz") is Access.ANYBODY
    for wrong in ("rgthree", "TRACE /x", "/a?b", "/**", "POST  /x"):
        with pytest.raises(ValueError, match="is not a path"):
            RouteSettings(users=(wrong,))


def test_what_is_answered_here_is_known_in_all_spellings() -> None:
    here = AnsweredHere(["/queue", "/history/{prompt_id}", "/api/jobs", "/models/{folder}"])
    for path in ("//queue", "/queue/", "/api/queue", "/QUEUE", "/./queue", "/%71ueue", "/history/x/", "/api//jobs"):
        assert path in here, path
    for path in ("/", "/queues", "/queue/x/y", "/jobs", "/history/x/y", "/extensions/queue"):
        assert path not in here, path


def test_no_row_is_there_twice() -> None:
    seen: set[tuple[str, str]] = set()
    for row in TABLE:
        for method in row.methods.split():
            assert (method, row.path) not in seen, row
            seen.add((method, row.path))
    assert Row("*", "/**", Access.ADMINS) in TABLE
    assert plain("/api/api/x//./Y\\z").parts == ("x", "y", "z")
