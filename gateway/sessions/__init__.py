"""Clients' WebSockets: who is connected, which events go where, in which order."""
