"""What `policy_loss` computes: the trainer's own loss, in plain PyTorch.

The formulas and their sources are in `assay_trainer.algorithms`; a second copy of them here could
only drift away. It runs in float32 and float64, on any device.
"""

from __future__ import annotations

from assay_trainer.algorithms.loss import Loss, Packed, Totals, policy_loss

__all__ = ["Loss", "Packed", "Totals", "policy_loss"]
