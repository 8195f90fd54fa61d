"""What is asked of edited weights before they may be verified, in this order: NaN passes every comparison."""

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


def require_anchored(request_id: str, norm: float, limit: float) -> None:
    """Refuse a value far beyond the clean model's mean norm instead of writing it (NAS, arXiv 2602.02543).

    Raises:
        EditError: reason ``norm``.
    """
    if not norm <= limit:
        raise EditError(
            f"the value of {request_id} has norm {norm:.1f}, at most {limit:.1f} is allowed", reason="norm"
        )
