"""A walk through all node classes of a ComfyUI as an isolated tenant who looks for another's files. See `__main__`."""
