"""AlphaEdit (Null-Space Constrained Knowledge Editing, arXiv 2410.02355).

P projects onto the null space of C, the eigenvectors with eigenvalues near 0 (eq. 6): a change along P leaves
what the clean model's keys give as it is. With previous edits Kp (eq. 14): Δ = R Kᵀ P (Kp Kpᵀ P + K Kᵀ P +
λ·I)⁻¹. W moves along P alone, so W K = W0 (I − P) K + W P K, and Δ is the engine's ridge solution with prior
λ·I for the keys P K and the values V − W0 (I − P) K. With ``residual = full`` at two layers: AlphaEdit-BLUE
(arXiv 2502.03748).
"""

import torch

from daemon.core.errors import EditError
from workers.bench.baselines.published import PublishedEditor
from workers.bench.baselines.registry import AlphaEditRecipe
from workers.editing.memory import Memory


class ProjectedMemory(Memory):
    """The engine's memory of pairs that were projected by P [d_in, d_in]."""

    def __init__(self, weight: torch.Tensor, prior: torch.Tensor, projector: torch.Tensor) -> None:
        super().__init__(weight, prior)
        self.projector = projector

    def columns(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return P K [d_in, n] and V − W0 (I − P) K [d_out, n], fp64."""
        K, V = super().columns(keys, values)
        F = self.projector @ K
        return F, V - self.base @ (K - F)

    def strength(self, keys: torch.Tensor) -> torch.Tensor:
        """Return s [n] of keys [n, d_in] as the prior sees them, projected."""
        return super().strength(keys.to(self.projector) @ self.projector)

    def values_for(self, keys: torch.Tensor, goals: torch.Tensor, least: float) -> torch.Tensor:
        """Return values [n, d_out] that bring W k to ``goals`` once keys [n, d_in] are written."""
        K, _ = super().columns(keys, goals)
        return super().values_for(keys, goals, least) + (self.base @ (K - self.projector @ K)).T


class AlphaEdit(PublishedEditor):
    """AlphaEdit, and AlphaEdit-BLUE where the recipe has ``residual = full``."""

    recipe: AlphaEditRecipe

    def new_memory(self, weight: torch.Tensor, moment: torch.Tensor, prior: torch.Tensor) -> Memory:
        """Return the memory of one layer, or raise EditError if C has no eigenvalue below the threshold."""
        return ProjectedMemory(weight, prior, null_space(moment, self.recipe.null_space_threshold))


def null_space(moment: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return projector P [d_in, d_in] on C's eigenvectors below the threshold (eq. 6), or raise EditError."""
    eigenvalues, vectors = torch.linalg.eigh(moment.double())
    free = vectors[:, eigenvalues < threshold]
    if free.shape[1] == 0:
        raise EditError(f"C has no eigenvalue below {threshold}", hint="raise null_space_threshold")
    projector: torch.Tensor = free @ free.T
    return projector
