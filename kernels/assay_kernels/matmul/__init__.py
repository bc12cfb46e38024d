"""x W^T with the same bits for a row whatever the batch, fast for few rows."""
