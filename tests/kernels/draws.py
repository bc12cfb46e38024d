"""Random logits, and what it means that tokens are the reference's."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from assay_kernels.sampler import reference
from assay_kernels.sampler.op import sample
from assay_kernels.sampler.reference import Sampled
from tests.kernels.heads import DEVICE


@dataclass(frozen=True)
class Requests:
    """The arguments of `sample`."""

    logits: Tensor
    temperatures: Tensor
    seeds: Tensor
    positions: Tensor
    top_ks: Tensor | None = None
    top_ps: Tensor | None = None
    min_ps: Tensor | None = None

    def arguments(self) -> tuple[Tensor | None, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))

    def only(self, rows: Any) -> Requests:
        """Some of them."""
        parts = (x if x is None else x[rows] for x in self.arguments())
        return Requests(*parts)  # type: ignore[arg-type]

    def asking(self, **filters: Any) -> Requests:
        """The same with filters: numbers, one a row or one for all."""
        rows = len(self.logits)
        made = {
            name: torch.as_tensor(
                value, dtype=torch.int32 if name == "top_ks" else torch.float32, device=DEVICE
            ).expand(rows)
            for name, value in filters.items()
        }
        return replace(self, **made)

    def drawn(self) -> Sampled:
        """What `sample` draws."""
        return sample(*self.arguments())  # type: ignore[arg-type]

    def true(self) -> Sampled:
        """What the reference draws in float64."""
        exact = replace(self, logits=self.logits.double(), temperatures=self.temperatures.double())
        return reference.sample(*exact.arguments())  # type: ignore[arg-type]


def draw(
    rows: int,
    vocabulary: int,
    *,
    spread: float = 3.0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Requests:
    """Normal logits, temperatures from 0.3 to 1.5, and seeds and positions of all sizes."""
    source = torch.Generator(DEVICE).manual_seed(seed)

    def whole(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (rows,), generator=source, device=DEVICE)

    return Requests(
        (torch.randn(rows, vocabulary, generator=source, device=DEVICE) * spread).to(dtype),
        torch.rand(rows, generator=source, device=DEVICE) * 1.2 + 0.3,
        whole(-(2**62), 2**62),
        whole(0, 2**20),
    )


def same(found: Sampled, true: Sampled, *, but: float = 0.0) -> None:
    """Equal tokens, but for a share of the rows (where two scores are as good as equal), with equal
    log-probs; NaN where NaN is."""
    equal = found.tokens == true.tokens
    assert float((~equal).float().mean()) <= but, (found.tokens[~equal], true.tokens[~equal])
    mine, theirs = found.log_probs[equal].double(), true.log_probs[equal].double()
    assert torch.equal(mine.isnan(), theirs.isnan())
    assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-5, equal_nan=True)
