"""What is asked of edited weights before they may be verified, in this order: NaN passes every comparison."""

from collections.abc import Sequence

import torch

from daemon.core.errors import EditError


def require_finite(layer: int, weight: torch.Tensor) -> None:
    """Refuse a weight that holds anything but numbers.

    Raises:
        EditError: reason ``not_finite``.
    """
    if not weight.isfinite().all():
        raise EditError(f"layer {layer} is not finite", reason="not_finite")


def require_near(layer: int, batch: float, total: float, batch_ceiling: float, total_ceiling: float) -> None:
    """Refuse a layer that moved too far, as shares of ‖W0‖: in one batch, or from W0 altogether.

    Raises:
        EditError: reason ``norm``.
    """
    if not batch <= batch_ceiling:
        raise EditError(f"layer {layer} moved by {batch:.3f} of its norm in one batch", reason="norm")
    if not total <= total_ceiling:
        raise EditError(f"layer {layer} is {total:.3f} of its norm away from the base", reason="norm")


def require_anchored(ids: Sequence[str], norms: Sequence[float], limits: Sequence[float]) -> None:
    """Refuse values far beyond the clean model's mean norm instead of writing them (NAS, arXiv 2602.02543).

    Raises:
        EditError: reason ``norm``, with the requests that are guilty.
    """
    beyond = [
        (one, norm, limit) for one, norm, limit in zip(ids, norms, limits, strict=True) if not norm <= limit
    ]
    if beyond:
        _, norm, limit = beyond[0]
        raise EditError(
            f"the value has norm {norm:.1f}, at most {limit:.1f} is allowed",
            reason="norm",
            guilty=[one for one, _, _ in beyond],
        )
