"""Scheduling: the choice of a backend, dispatch, retries, work stealing."""
