"""A faithful ComfyUI without a GPU: for the demo, the tests and the benchmarks."""
