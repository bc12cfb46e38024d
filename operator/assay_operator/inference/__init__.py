"""Serving: pure functions from an InferenceService and what is seen of it to a plan."""
