"""SwiGLU's silu(gate) * up, with the same bits for a row whatever the batch."""
