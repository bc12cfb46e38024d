"""How many replicas a service needs, and why: pure functions of a policy, a state and a sample."""
