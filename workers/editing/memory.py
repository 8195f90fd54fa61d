"""One edited layer as a linear associative memory in fp64.

The layer is the ridge solution W = argmin Σ ‖W k_i − v_i‖² + tr((W−W0) A0 (W−W0)ᵀ) over the pairs that it
holds, A0 = λp·C + λn·I. Writing and forgetting are its recursive form: with history it is ENCORE's sequential
closed form with previous-edits weight 1 (arXiv 2502.01636), and it undoes itself exactly.
"""

from typing import Self

import torch

from daemon.core.errors import EditError

_RESIDUAL = 1e-9  # relative residual of a solve above which the inverse is computed afresh
_WOODBURY_SHARE = 4  # up to d_in / 4 pairs at once the update of the inverse is cheaper than a new one


class Memory:
    """Weights W [d_out, d_in] and the Gram matrix A [d_in, d_in] of prior and pairs, both fp64.

    With ``projector`` P [d_in, d_in] keys are projected first (AlphaEdit, arXiv 2410.02355: keys through the
    null space of C). Without ``history`` each write is solved against the prior alone (MEMIT).
    """

    def __init__(
        self,
        weight: torch.Tensor,
        prior: torch.Tensor,
        *,
        history: bool = True,
        projector: torch.Tensor | None = None,
    ) -> None:
        self.base = weight.detach().double().clone()
        self.weight = self.base.clone()
        self.prior = prior.double()
        self.history = history
        self.projector = projector
        self._pairs = 0
        self._gram = self.prior.clone()
        self._inverse = _invert(self._gram)

    def copy(self) -> Self:
        """The same memory; what is written to one is not seen by the other."""
        twin = object.__new__(type(self))
        twin.__dict__ = dict(self.__dict__)
        return twin

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add pairs: A += K Kᵀ, then W += (V − W K) Kᵀ A⁻¹.

        keys [n, d_in] and values [n, d_out], any float dtype; the maths is fp64.

        Raises:
            EditError: reason ``not_finite`` when a number is not finite; nothing was changed.
        """
        K, V = self._columns(keys, values)
        if self.history:
            gram, inverse = self._updated(K, sign=1)
        else:
            gram, inverse = self._gram, _updated_inverse(self._inverse, K, sign=1)
        weight = self.weight + (V - self.weight @ K) @ (inverse @ K).T
        self._set(weight, gram, inverse if self.history else self._inverse, self._pairs + K.shape[1])

    def forget(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Take pairs out that were written: A −= K Kᵀ, then W −= (V − W K) Kᵀ A⁻¹.

        A memory that holds nothing any more is W0 itself, free of the rounding of the way there.

        Raises:
            EditError: the memory keeps no history, or a number is not finite; nothing was changed.
        """
        if not self.history:
            raise EditError(
                "this recipe keeps no history and cannot forget", hint="use rollback, or encore-blue"
            )
        K, V = self._columns(keys, values)
        if self._pairs == K.shape[1]:
            self.rebuild(keys[:0], values[:0])
            return
        gram, inverse = self._updated(K, sign=-1)
        weight = self.weight - (V - self.weight @ K) @ (inverse @ K).T
        self._set(weight, gram, inverse, self._pairs - K.shape[1])

    def rebuild(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Start from W0 and write all pairs in one shot: W = W0 + (V − W0 K) Kᵀ A⁻¹.

        Raises:
            EditError: a number is not finite; nothing was changed.
        """
        if len(keys) == 0:
            self._set(self.base.clone(), self.prior.clone(), _invert(self.prior), 0)
            return
        K, V = self._columns(keys, values)
        gram = self.prior + K @ K.T
        inverse = _invert(gram)
        self._set(self.base + (V - self.base @ K) @ (inverse @ K).T, gram, inverse, K.shape[1])

    def response(self, keys: torch.Tensor) -> torch.Tensor:
        """kᵀ A⁻¹ k [n] for keys [n, d_in] that are held: the share of v − W k that writing v moves W k by."""
        K = self._projected(keys)
        return (K * (self._inverse @ K)).sum(0)

    def delta_norm(self) -> float:
        """‖W − W0‖ / ‖W0‖ (Frobenius)."""
        return float((self.weight - self.base).norm() / self.base.norm())

    def _columns(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        K = self._projected(keys)
        V = values.to(self.weight.device).double().T
        if not (K.isfinite().all() and V.isfinite().all()):
            raise EditError("a key or value is not finite", reason="not_finite")
        return K, V

    def _projected(self, keys: torch.Tensor) -> torch.Tensor:
        K = keys.to(self.weight.device).double().T
        return self.projector @ K if self.projector is not None else K

    def _updated(self, K: torch.Tensor, sign: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Gram matrix and inverse after K is added or removed; refactorised when the residual is large."""
        gram = self._gram + sign * (K @ K.T)
        if K.shape[1] * _WOODBURY_SHARE > K.shape[0]:
            return gram, _invert(gram)
        inverse = _updated_inverse(self._inverse, K, sign)
        residual = (gram @ (inverse @ K) - K).norm()
        if not residual <= _RESIDUAL * K.norm():
            inverse = _invert(gram)
        return gram, inverse

    def _set(self, weight: torch.Tensor, gram: torch.Tensor, inverse: torch.Tensor, pairs: int) -> None:
        if not weight.isfinite().all():
            raise EditError("the solution is not finite", reason="not_finite")
        self.weight, self._gram, self._inverse, self._pairs = weight, gram, inverse, pairs


def _updated_inverse(inverse: torch.Tensor, K: torch.Tensor, sign: int) -> torch.Tensor:
    """Woodbury: (A ± K Kᵀ)⁻¹ = A⁻¹ ∓ A⁻¹K (I ± KᵀA⁻¹K)⁻¹ KᵀA⁻¹."""
    solved = inverse @ K
    small = torch.eye(K.shape[1], dtype=K.dtype, device=K.device) + sign * (K.T @ solved)
    updated: torch.Tensor = inverse - sign * (solved @ torch.linalg.solve(small, solved.T))
    return updated


def _invert(gram: torch.Tensor) -> torch.Tensor:
    """The inverse of a symmetric positive definite matrix by Cholesky.

    Raises:
        EditError: it is not positive definite.
    """
    factor, info = torch.linalg.cholesky_ex(gram)
    if int(info) != 0:
        raise EditError("the Gram matrix is not positive definite", hint="raise λn of the recipe")
    return torch.cholesky_inverse(factor)
