"""The backends: their state, probing, the upstream socket, outlier ejection."""
