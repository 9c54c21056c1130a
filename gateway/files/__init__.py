"""Files on backends: an index of their places, uploads, and their transfer."""
