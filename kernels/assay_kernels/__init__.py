"""Fused kernels for trainer and engine, each with a plain PyTorch reference.

One folder an op: `kernel.py` (Triton), `reference.py` (what it computes, in plain PyTorch), `op.py`
(the function that others call: checks, gradients, torch.library), `README.md`. What a kernel does
not fit falls back to the reference; `registry` tells what ran where, and why not.

Nothing is imported here: Triton is imported when the first kernel runs.
"""
