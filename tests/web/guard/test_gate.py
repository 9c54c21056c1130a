"""The gate: whom limits hold for."""

from __future__ import annotations

import pytest

from gateway.web.app import OWN
from gateway.web.guard.gate import _is_operations


@pytest.mark.parametrize("route", sorted({path for _, path, _ in OWN}))
def test_limits_hold_for_what_users_do_with_their_own(route: str) -> None:
    own = ("/gateway/api/v1/me/", "/gateway/run", "/gateway/workflows")
    assert _is_operations(route) is not route.startswith(own)
