"""Steps that bring δ closer to its target."""

from typing import Protocol

import torch

_MOMENTUM = 0.5  # share of the last mean gradient: enough to damp turns of the direction


class Descent(Protocol):
    """An optimiser of rows that begin together and stop when told."""

    def step(self, gradient: torch.Tensor, moving: torch.Tensor) -> None:
        """Take one step in place along gradient [n, width] for the rows that are ``moving`` [n] bool."""


class Normalised:
    """Steps of one length a row along the mean gradient: δ −= ρ·r·m/‖m‖, r the row's reach [n] (‖h‖).

    Adam moves every coordinate alike and ends with a δ about twice as long for the same answer; a short one
    disturbs less of what else the layer does.
    """

    def __init__(self, rows: torch.Tensor, share: float, reach: torch.Tensor) -> None:
        self._rows, self._length = rows, share * reach[:, None]
        self._mean = torch.zeros_like(rows)

    def step(self, gradient: torch.Tensor, moving: torch.Tensor) -> None:
        """Take one step in place along gradient [n, width] for the rows that are ``moving`` [n] bool."""
        self._mean.mul_(_MOMENTUM).add_(gradient, alpha=1 - _MOMENTUM)
        direction = self._mean / self._mean.norm(dim=1, keepdim=True).clamp(min=1e-30)
        self._rows.sub_(moving[:, None] * self._length * direction)
