"""ENCORE (Lifelong Knowledge Editing requires Better Regularization, arXiv 2502.01636), as published.

Most-Probable Early Stopping (section 4) ends each target search, and a Frobenius norm constraint (section 5)
joins MEMIT's least squares with all previous edits: Δ = R Kᵀ (λp·C + Kp Kpᵀ + K Kᵀ + λn·I)⁻¹. The engine's
memory is that solution in recursive form, so the published method is MEMIT's spread over all critical layers
on top of it.
"""

from workers.bench.baselines.published import PublishedEditor


class Encore(PublishedEditor):
    """The engine's memory with one residual for all critical layers."""
