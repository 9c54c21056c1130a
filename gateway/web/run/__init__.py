"""Synchronous runs and named workflows in HTTP: a graph, or the values of its parameters, in; the result out."""
