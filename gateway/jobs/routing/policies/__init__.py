"""Routing policies: one Protocol, one registry (`registry.py`), one file each. Pure."""
