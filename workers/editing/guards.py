"""Checks that edited weights must pass before they are verified."""

from collections.abc import Sequence

import torch

from daemon.core.errors import EditError


def require_finite(layer: int, weight: torch.Tensor) -> None:
    """Raise EditError (``not_finite``) for a weight with an entry that is not finite."""
    if not weight.isfinite().all():
        raise EditError(f"layer {layer} is not finite", reason="not_finite")


def require_near(layer: int, batch: float, total: float, batch_ceiling: float, total_ceiling: float) -> None:
    """Raise EditError (``norm``) for a layer that moved too far in one batch or from W0, shares of ‖W0‖."""
    if not batch <= batch_ceiling:
        raise EditError(f"layer {layer} moved by {batch:.3f} of its norm in one batch", reason="norm")
    if not total <= total_ceiling:
        raise EditError(f"layer {layer} is {total:.3f} of its norm away from the base", reason="norm")


def require_anchored(ids: Sequence[str], norms: Sequence[float], limits: Sequence[float]) -> None:
    """Raise EditError (``norm``, culprits) for norms beyond their limits (NAS, arXiv 2602.02543)."""
    beyond = [row for row, norm in enumerate(norms) if not norm <= limits[row]]
    if beyond:
        worst = max(beyond, key=lambda row: norms[row] / limits[row])
        raise EditError(
            f"a value of norm {norms[worst]:.1f}, at most {limits[worst]:.1f} is allowed",
            reason="norm",
            culprits=[ids[row] for row in beyond],
        )


def retry_without(ids: Sequence[str], error: EditError) -> tuple[list[int], list[list[int]]]:
    """Return the rows that an error refuses, and the parts to try again: halves if it names no culprit."""
    refused = [row for row, one in enumerate(ids) if one in error.culprits or len(ids) == 1]
    rest = [row for row in range(len(ids)) if row not in set(refused)]
    middle = 0 if refused else len(rest) // 2
    return refused, [part for part in (rest[:middle], rest[middle:]) if part]
