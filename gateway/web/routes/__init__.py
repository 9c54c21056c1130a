"""Handlers of the routes, thin: read the request, call one function, write the response."""
