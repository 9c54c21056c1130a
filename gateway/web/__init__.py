"""The HTTP side: sockets, the checks that requests pass, and handlers."""
