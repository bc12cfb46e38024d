"""Assay: a Kubernetes operator that serves a model only after it was weighed."""

__version__ = "0.1.0"
