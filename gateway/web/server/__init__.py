"""Sockets and TLS: connections from their acceptance until a request is parsed."""
