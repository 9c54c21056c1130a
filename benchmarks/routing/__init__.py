"""Routing policies in a simulation of a fleet: the gateway's own pure functions, and time that runs in events."""
