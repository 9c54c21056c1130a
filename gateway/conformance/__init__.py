"""Conformance: compare a server's responses with recordings of a real ComfyUI."""
