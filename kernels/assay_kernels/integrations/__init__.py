"""How the kernels get into other programs."""
