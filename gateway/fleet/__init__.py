"""The backends: their state, probing, the upstream socket, the catalogue, which file is where."""
