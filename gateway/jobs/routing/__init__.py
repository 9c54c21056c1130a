"""Routing: learned times, models in memory, and the policies that choose which job runs where. Pure."""
