"""RMSNorm of every head of queries and keys, and rotary positions, in one pass."""
