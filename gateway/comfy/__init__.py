"""ComfyUI: its graphs, events, previews, history entries, error bodies and HTTP interface."""
