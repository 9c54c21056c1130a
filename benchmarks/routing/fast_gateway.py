"""A gateway whose routing takes a real second for many: ``ROUTING_RATE=50 python -m benchmarks.routing.fast_gateway``.

The arguments are those of the gateway's own command.
"""

from __future__ import annotations

import os

from gateway import app
from gateway.cli import main
from gateway.settings import Settings


class FastGateway(app.Gateway):
    """Gateway for backends that run as many times faster than real ones."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, float(os.environ["ROUTING_RATE"]))


if __name__ == "__main__":
    main.Gateway = FastGateway  # type: ignore[misc]
    main.main()
