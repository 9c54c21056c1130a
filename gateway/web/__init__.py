"""HTTP handlers, thin: read the request, call one thing, write the answer."""
