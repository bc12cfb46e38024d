"""RMSNorm, alone or after an addition, with the same bits for a row whatever the batch."""
