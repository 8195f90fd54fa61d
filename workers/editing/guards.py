"""Checks that edited weights must pass before they are verified."""

from collections.abc import Sequence

import torch

from daemon.core.errors import EditError


def require_finite(layer: int, weight: torch.Tensor) -> None:
    """Refuse a weight with an entry that is not finite.

    Raises:
        EditError: reason ``not_finite``.
    """
    if not weight.isfinite().all():
        raise EditError(f"layer {layer} is not finite", reason="not_finite")


def require_near(layer: int, batch: float, total: float, batch_ceiling: float, total_ceiling: float) -> None:
    """Refuse a layer that moved too far, in one batch or from W0, both as shares of ‖W0‖.

    Raises:
        EditError: reason ``norm``.
    """
    if not batch <= batch_ceiling:
        raise EditError(f"layer {layer} moved by {batch:.3f} of its norm in one batch", reason="norm")
    if not total <= total_ceiling:
        raise EditError(f"layer {layer} is {total:.3f} of its norm away from the base", reason="norm")


def require_anchored(ids: Sequence[str], norms: Sequence[float], limits: Sequence[float]) -> None:
    """Refuse values whose norm exceeds its limit (NAS, arXiv 2602.02543).

    Raises:
        EditError: reason ``norm``, with the requests that are guilty.
    """
    beyond = [row for row, norm in enumerate(norms) if not norm <= limits[row]]
    if beyond:
        worst = max(beyond, key=lambda row: norms[row] / limits[row])
        raise EditError(
            f"a value of norm {norms[worst]:.1f}, at most {limits[worst]:.1f} is allowed",
            reason="norm",
            culprits=[ids[row] for row in beyond],
        )


def retry_without(ids: Sequence[str], error: EditError) -> tuple[list[int], list[list[int]]]:
    """Return the rows that an error refuses for good, and the parts in which to try the others again.

    An error that names no culprit halves the batch, until the culprit is alone.
    """
    refused = [row for row, one in enumerate(ids) if one in error.culprits or len(ids) == 1]
    rest = [row for row in range(len(ids)) if row not in set(refused)]
    middle = 0 if refused else len(rest) // 2
    return refused, [part for part in (rest[:middle], rest[middle:]) if part]
