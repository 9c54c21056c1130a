"""Files on backends: an index of what lies where, uploads, and their transfer."""
