"""PRUNE (Perturbation-Restrained Sequential Model Editing, arXiv 2405.16821).

MEMIT, with the sum of all updates restrained: its largest singular values, which grow with the number of
edits and raise the condition number of W, grow by a logarithm only (section 4.2).
"""

import math

import torch

from workers.bench.baselines.memit import Memit
from workers.bench.baselines.registry import PruneRecipe
from workers.editing.memory import Memory


class Prune(Memit):
    """MEMIT whose published weights are W0 plus the restrained sum of all updates."""

    recipe: PruneRecipe

    def change_of(self, memory: Memory) -> torch.Tensor:
        """Return ΔW [d_out, d_in] restrained once, for the memory keeps the full sum."""
        return restrained(super().change_of(memory), memory.base, self.recipe.restraint)


def restrained(delta: torch.Tensor, base: torch.Tensor, logarithm: float) -> torch.Tensor:
    """Return ΔW [d_out, d_in] whose singular values σ > σmax(W0) become log_b σ − log_b σmax + σmax."""
    left, sigma, right = torch.linalg.svd(delta, full_matrices=False)
    largest = torch.linalg.matrix_norm(base, ord=2)
    grown = (sigma / largest).clamp(min=1.0).log() / math.log(logarithm) + largest
    kept: torch.Tensor = (left * torch.where(sigma > largest, grown, sigma)) @ right
    return kept
