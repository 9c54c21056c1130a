"""Benchmarks: each figure beside its yardstick, measured in turns in one run."""
