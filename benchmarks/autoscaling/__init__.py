"""Replays a trace of requests against simulated engines under several autoscaling policies."""
