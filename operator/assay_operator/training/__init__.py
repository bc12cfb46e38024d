"""Training as plain data: what a VerifiedRLJob needs, and how it is doing. No network, no clock."""
