"""``python -m gateway.simulator``."""

from gateway.simulator.command import simulate

simulate()
