"""Requests in, responses out: forms of bodies and headers that no route's work depends on."""
