"""Checks that each request passes before a handler sees it: who calls, from where, how often, with which role."""
