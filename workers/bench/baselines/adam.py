"""Adam (arXiv 1412.6980), by which the published methods optimise δ."""

import torch

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8  # section 2: good default settings


class Adam:
    """Algorithm 1 on rows [n, width] that begin together and stop when told."""

    def __init__(self, rows: torch.Tensor, rate: float) -> None:
        self._rows, self._rate, self._taken = rows, rate, 0
        self._mean, self._square = torch.zeros_like(rows), torch.zeros_like(rows)

    def step(self, gradient: torch.Tensor, moving: torch.Tensor) -> None:
        """Take one step in place along gradient [n, width] for the rows that are ``moving`` [n] bool."""
        self._taken += 1
        self._mean.mul_(_BETA1).add_(gradient, alpha=1 - _BETA1)
        self._square.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
        mean = self._mean / (1 - _BETA1**self._taken)
        square = self._square / (1 - _BETA2**self._taken)
        self._rows.sub_(moving[:, None] * self._rate * mean / (square.sqrt() + _EPSILON))
