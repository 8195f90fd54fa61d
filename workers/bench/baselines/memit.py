"""MEMIT (Mass-Editing Memory in a Transformer, arXiv 2210.07229).

Each batch is solved against C alone: Δ = R Kᵀ (λp·C + K Kᵀ)⁻¹ (eq. 14) with R = V − W K (eq. 13) of the
weights as they are; nothing of earlier batches but these weights is kept. Targets and the spread over the
critical layers are in ``published``. With ``residual = full`` at two layers it is MEMIT-BLUE (arXiv
2502.03748).
"""

from collections.abc import Sequence

import torch

from daemon.core.errors import EditError
from workers.bench.baselines.published import PublishedEditor
from workers.editing.editor import Associations
from workers.editing.memory import Memory
from workers.editing.prompts import EditRequest


class BatchMemory(Memory):
    """Weights without history, each batch solved against the prior λp·C."""

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add Δ of keys [n, d_in] and values [n, d_out], or raise EditError if a number is not finite."""
        K, V = self.columns(keys, values)
        weight = self.weight + (V - self.weight @ K) @ self.solved(K).T
        self._set(weight, self._gram, self._inverse, self._pairs)

    def solved(self, K: torch.Tensor) -> torch.Tensor:
        """Return (λp·C + K Kᵀ)⁻¹ K [d_in, n] of keys K [d_in, n] (eq. 14)."""
        solved: torch.Tensor = torch.linalg.solve(self.prior + K @ K.T, K)
        return solved

    def forget(self, _keys: torch.Tensor, _values: torch.Tensor) -> None:
        """Raise EditError, for what a batch added depends on what was there."""
        raise EditError("this recipe keeps no history and cannot forget", hint="use rollback, or encore-blue")


class Memit(PublishedEditor):
    """MEMIT, and MEMIT-BLUE where the recipe has ``residual = full``."""

    memory = BatchMemory

    def mend(self, _requests: Sequence[EditRequest], written: Associations) -> Associations:
        """Return the pairs as they are: what cannot be forgotten cannot be replaced."""
        return written
