"""Whether something is still a ComfyUI: what recordings of a real one show, compared with what it answers."""
