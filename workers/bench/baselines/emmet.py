"""EMMET (A Unified Framework for Model Editing, arXiv 2403.14236).

MEMIT's least squares with an equality constraint, as ROME has for one fact: of all Δ that reach the batch's
values exactly, the least under C: Δ = R (Kᵀ C⁻¹ K)⁻¹ Kᵀ C⁻¹. Targets and spread are MEMIT's.
"""

import torch

from workers.bench.baselines.memit import BatchMemory, Memit


class EqualityMemory(BatchMemory):
    """Weights that reach each batch's values exactly."""

    def solved(self, K: torch.Tensor) -> torch.Tensor:
        """Return C⁻¹ K (Kᵀ C⁻¹ K)⁻¹ [d_in, n] of keys K [d_in, n], in which λp cancels."""
        solved = torch.linalg.solve(self.prior, K)
        exact: torch.Tensor = torch.linalg.solve(K.T @ solved, solved.T).T
        return exact


class Emmet(Memit):
    """EMMET."""

    memory = EqualityMemory
