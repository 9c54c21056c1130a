"""The commands: serve, check, keys, journal, demo, simulate."""
