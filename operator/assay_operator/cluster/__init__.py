"""The shell towards Kubernetes: client, live view, apply, audit and leader election."""
