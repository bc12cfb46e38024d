"""Holds a service's requests while it has no replica: a program of its own, in a pod of its own."""
