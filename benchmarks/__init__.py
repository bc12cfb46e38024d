"""Measured claims: scripts and the tables that they wrote."""
