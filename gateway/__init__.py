"""comfyui-gateway: one HTTP endpoint that is a ComfyUI to every client, and behind it a fleet of backends."""
