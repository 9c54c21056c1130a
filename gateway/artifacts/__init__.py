"""Copies of outputs in object storage."""
