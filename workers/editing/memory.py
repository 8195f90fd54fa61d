"""One edited layer as a linear associative memory in fp64.

The layer is the ridge solution W = argmin Σ ‖W k_i − v_i‖² + tr((W−W0) A0 (W−W0)ᵀ) over its pairs, with A0 =
λp·C + λn·I. Writing and forgetting are its recursive form: ENCORE's sequential closed form with
previous-edits weight 1 (arXiv 2502.01636), which undoes itself exactly.
"""

import math
from typing import Self

import torch

from daemon.core.errors import EditError

_RESIDUAL = 1e-9  # relative residual of a solve above which the inverse is computed afresh
_STRENGTH = 1e5  # kᵀ A0⁻¹ k above which forgetting would lose half of the digits
_GRID = 2.0**-16  # of W0's entries: coarser than the memory's rounding, finer than what an answer depends on
_WOODBURY_SHARE = 4  # up to d_in / 4 pairs at once the update of the inverse is cheaper than a new one


class Memory:
    """Weights W [d_out, d_in] and the Gram matrix A [d_in, d_in] of prior A0 and pairs, both fp64."""

    def __init__(self, weight: torch.Tensor, prior: torch.Tensor) -> None:
        self.base = weight.detach().double().clone()
        self.weight = self.base
        self.prior = prior.double()
        self._pairs = 0
        self._prior_inverse = _invert(self.prior)
        self._gram, self._inverse = self.prior, self._prior_inverse

    def copy(self) -> Self:
        """Return a memory with the same pairs, which changes independently."""
        twin = object.__new__(type(self))
        twin.__dict__ = dict(self.__dict__)
        return twin

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add pairs: A += K Kᵀ, then W += (V − W K) Kᵀ A⁻¹.

        keys [n, d_in] and values [n, d_out], any float dtype; the maths is fp64. Raises EditError and changes
        nothing for a number that is not finite (``not_finite``) or a key that outweighs the prior so far that
        its pair could not be forgotten exactly (``norm``).
        """
        K, V = self.columns(keys, values)
        strength = float(self._strength(K).max())
        if not strength <= _STRENGTH:
            raise EditError(f"a key outweighs the prior {strength:.0e} times", reason="norm", hint="raise λn")
        gram, inverse = self._updated(K, sign=1)
        weight = self.weight + (V - self.weight @ K) @ _solve(gram, inverse, K).T
        self._set(weight, gram, inverse, self._pairs + K.shape[1])

    def forget(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Take pairs out that were written: A −= K Kᵀ, then W −= (V − W K) Kᵀ A⁻¹.

        A memory without pairs is W0 itself, free of rounding. Raises EditError if a number is not finite.
        """
        K, V = self.columns(keys, values)
        if self._pairs == K.shape[1]:
            self.rebuild(keys[:0], values[:0])
            return
        gram, inverse = self._updated(K, sign=-1)
        weight = self.weight - (V - self.weight @ K) @ _solve(gram, inverse, K).T
        self._set(weight, gram, inverse, self._pairs - K.shape[1])

    def rebuild(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write all pairs at once: W = W0 + (V − W0 K) Kᵀ A⁻¹, or raise EditError if one is not finite."""
        if len(keys) == 0:
            self._set(self.base, self.prior, self._prior_inverse, 0)
            return
        K, V = self.columns(keys, values)
        gram = self.prior + K @ K.T
        inverse = _invert(gram)
        self._set(self.base + (V - self.base @ K) @ _solve(gram, inverse, K).T, gram, inverse, K.shape[1])

    def strength(self, keys: torch.Tensor) -> torch.Tensor:
        """Return s = kᵀ A0⁻¹ k [n] of keys [n, d_in], which the prior resists the less the larger it is.

        A pair written alone moves W k by the share s/(1 + s) of v − W k.
        """
        return self._strength(keys.to(self.weight.device).double().T)

    def values_for(self, keys: torch.Tensor, goals: torch.Tensor, least: float) -> torch.Tensor:
        """Return values [n, d_out] that bring W k to ``goals`` [n, d_out] once keys [n, d_in] are written.

        With S = KᵀA⁻¹K writing V moves W K by the share S(I+S)⁻¹ of V − W K; so V = G + (G − W K)S⁻¹, S's
        eigenvalues taken as at least ``least``, so that keys which the prior resists do not get huge values.
        """
        K, G = self.columns(keys, goals)
        sizes, vectors = torch.linalg.eigh(K.T @ self._inverse @ K)
        away = (G - self.weight @ K) @ vectors / sizes.clamp(min=least)
        values: torch.Tensor = (G + away @ vectors.T).T
        return values

    def delta_norm(self) -> float:
        """Return ‖W − W0‖ / ‖W0‖ (Frobenius)."""
        return float((self.weight - self.base).norm() / self.base.norm())

    def columns(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return K [d_in, n] and V [d_out, n] in fp64, or raise EditError if a number is not finite."""
        K = keys.to(self.weight.device).double().T
        V = values.to(self.weight.device).double().T
        if not (K.isfinite().all() and V.isfinite().all()):
            raise EditError("a key or value is not finite", reason="not_finite")
        return K, V

    def _strength(self, K: torch.Tensor) -> torch.Tensor:
        resisted: torch.Tensor = (K * (self._prior_inverse @ K)).sum(0)
        return resisted

    def _updated(self, K: torch.Tensor, sign: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return Gram matrix and inverse with K added or removed, inverted anew if the residual is large."""
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


def on_grid(delta: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Round ΔW [d_out, d_in] to multiples of 2⁻¹⁶ of the power of two below W0's root mean square.

    The last digits of fp64 sums depend on their order. On the grid the same pairs give the same bits,
    whatever was written and forgotten before, but for an entry that lies half-way between two points.
    """
    typical = float(base.norm()) / math.sqrt(base.numel())
    step = _GRID * 2.0 ** math.floor(math.log2(typical)) if typical else _GRID
    return (delta / step).round() * step


def _solve(gram: torch.Tensor, inverse: torch.Tensor, K: torch.Tensor) -> torch.Tensor:
    """Return A⁻¹K, refined once by its residual: updates of the inverse lose digits where keys are strong."""
    solved = inverse @ K
    refined: torch.Tensor = solved + inverse @ (K - gram @ solved)
    return refined


def _updated_inverse(inverse: torch.Tensor, K: torch.Tensor, sign: int) -> torch.Tensor:
    """Return (A ± K Kᵀ)⁻¹ = A⁻¹ ∓ A⁻¹K (I ± KᵀA⁻¹K)⁻¹ KᵀA⁻¹ (Woodbury)."""
    solved = inverse @ K
    small = torch.eye(K.shape[1], dtype=K.dtype, device=K.device) + sign * (K.T @ solved)
    updated: torch.Tensor = inverse - sign * (solved @ torch.linalg.solve(small, solved.T))
    return updated


def _invert(gram: torch.Tensor) -> torch.Tensor:
    """Return the inverse by Cholesky, or raise EditError if the matrix is not positive definite."""
    factor, info = torch.linalg.cholesky_ex(gram)
    if int(info) != 0:
        raise EditError("the Gram matrix is not positive definite", hint="raise λn of the recipe")
    return torch.cholesky_inverse(factor)
