"""Checkpoints: pure functions from a Checkpoint and what is seen of it to a plan."""
