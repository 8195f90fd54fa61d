"""Steps that take δ downhill."""

import torch

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_MOMENTUM = 0.5  # of the normalised step: enough to damp its turns


class Adam:
    """Adam (arXiv 1412.6980, algorithm 1) on rows that begin together and stop when told."""

    def __init__(self, rows: torch.Tensor, rate: float) -> None:
        self._rows, self._rate, self._taken = rows, rate, 0
        self._mean, self._square = torch.zeros_like(rows), torch.zeros_like(rows)

    def step(self, gradient: torch.Tensor, moving: torch.Tensor) -> None:
        """One step in place for the rows [n] bool that move; gradient [n, width]."""
        self._taken += 1
        first, second = _BETAS
        self._mean.mul_(first).add_(gradient, alpha=1 - first)
        self._square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        mean = self._mean / (1 - first**self._taken)
        square = self._square / (1 - second**self._taken)
        self._rows.sub_(moving[:, None] * self._rate * mean / (square.sqrt() + _EPSILON))


class Normalised:
    """Steps of one length a row along the mean gradient: δ −= ρ·r·m/‖m‖, r the row's reach [n] (‖h‖).

    Adam moves every coordinate alike and ends with a δ about twice as long for the same answer; a short one
    disturbs less of what else the layer does.
    """

    def __init__(self, rows: torch.Tensor, share: float, reach: torch.Tensor) -> None:
        self._rows, self._length = rows, share * reach[:, None]
        self._mean = torch.zeros_like(rows)

    def step(self, gradient: torch.Tensor, moving: torch.Tensor) -> None:
        """One step in place for the rows [n] bool that move; gradient [n, width]."""
        self._mean.mul_(_MOMENTUM).add_(gradient, alpha=1 - _MOMENTUM)
        direction = self._mean / self._mean.norm(dim=1, keepdim=True).clamp(min=1e-30)
        self._rows.sub_(moving[:, None] * self._length * direction)
