"""Holds a service's requests while it has no replica: a program of its own, in a pod of its own.

It knows nothing of Kubernetes and imports nothing of the operator, so that it is small and goes on
while the operator is away. A request (POST) waits here until the routers have a worker, and is then
handed on; what merely asks about the server is answered here and wakes nobody.
"""
