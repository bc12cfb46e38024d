"""For each kind with an actor: what is looked at before its pure planner decides."""
