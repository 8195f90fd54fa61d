"""One edited layer as a linear associative memory in fp64.

The layer is the ridge solution W = argmin Σ ‖W k_i − v_i‖² + tr((W−W0) A0 (W−W0)ᵀ) over the pairs that it
holds, A0 = λp·C + λn·I. Writing and forgetting are its recursive form: with history it is ENCORE's sequential
closed form with previous-edits weight 1 (arXiv 2502.01636), and it undoes itself exactly.
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
    """Weights W [d_out, d_in] and the Gram matrix A [d_in, d_in] of prior and pairs, both fp64.

    With ``projector`` P [d_in, d_in] the weights only move along P (AlphaEdit, arXiv 2410.02355, eq. 14:
    keys through the null space of C): F = P K takes K's place wherever it is solved for, never where W
    reads it. Without ``history`` each write is solved against the prior alone (MEMIT, arXiv 2210.07229,
    eq. 14); with ``equality`` it reaches its values exactly at the least change under the prior (EMMET,
    arXiv 2403.14236): W += (V − W K)(KᵀA⁻¹K)⁻¹ KᵀA⁻¹.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        prior: torch.Tensor,
        *,
        history: bool = True,
        equality: bool = False,
        projector: torch.Tensor | None = None,
    ) -> None:
        self.base = weight.detach().double().clone()
        self.weight = self.base
        self.prior = prior.double()
        self.history, self.equality = history, equality
        self.projector = projector
        self._pairs = 0
        self._prior_inverse = _invert(self.prior)
        self._gram, self._inverse = self.prior, self._prior_inverse

    def copy(self) -> Self:
        """The same memory; what is written to one is not seen by the other."""
        twin = object.__new__(type(self))
        twin.__dict__ = dict(self.__dict__)
        return twin

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add pairs: A += K Kᵀ, then W += (V − W K) Kᵀ A⁻¹.

        keys [n, d_in] and values [n, d_out], any float dtype; the maths is fp64.

        Raises:
            EditError: reason ``not_finite`` when a number is not finite, ``norm`` when a key outweighs the
                prior so far that the pair could not be forgotten exactly; nothing was changed.
        """
        K, V, F = self._columns(keys, values)
        strength = float(self._strength(F).max())
        if self.history and not strength <= _STRENGTH:
            raise EditError(f"a key outweighs the prior {strength:.0e} times", reason="norm", hint="raise λn")
        gram, inverse = (self._gram, self._inverse) if self.equality else self._updated(F, sign=1)
        solved = _solve(gram, inverse, F)
        if self.equality:
            solved = torch.linalg.solve(K.T @ solved, solved.T).T
        weight = self.weight + (V - self.weight @ K) @ solved.T
        if not self.history:
            gram, inverse = self._gram, self._inverse
        self._set(weight, gram, inverse, self._pairs + K.shape[1])

    def forget(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Take pairs out that were written: A −= K Kᵀ, then W −= (V − W K) Kᵀ A⁻¹.

        A memory that holds nothing any more is W0 itself, free of the rounding of the way there.

        Raises:
            EditError: the memory keeps no history, or a number is not finite; nothing was changed.
        """
        if not self.history or self.equality:
            raise EditError(
                "this recipe keeps no history and cannot forget", hint="use rollback, or encore-blue"
            )
        K, V, F = self._columns(keys, values)
        if self._pairs == K.shape[1]:
            self.rebuild(keys[:0], values[:0])
            return
        gram, inverse = self._updated(F, sign=-1)
        weight = self.weight - (V - self.weight @ K) @ _solve(gram, inverse, F).T
        self._set(weight, gram, inverse, self._pairs - K.shape[1])

    def rebuild(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Start from W0 and write all pairs in one shot: W = W0 + (V − W0 K) Kᵀ A⁻¹.

        Raises:
            EditError: a number is not finite; nothing was changed.
        """
        if len(keys) == 0:
            self._set(self.base, self.prior, self._prior_inverse, 0)
            return
        K, V, F = self._columns(keys, values)
        gram = self.prior + F @ F.T
        inverse = _invert(gram)
        self._set(self.base + (V - self.base @ K) @ _solve(gram, inverse, F).T, gram, inverse, K.shape[1])

    def strength(self, keys: torch.Tensor) -> torch.Tensor:
        """kᵀ A0⁻¹ k [n] of keys [n, d_in]: how little the prior resists; alone, v moves W k by s/(1 + s)."""
        return self._strength(self._projected(keys.to(self.weight.device).double().T))

    def values_for(self, keys: torch.Tensor, goals: torch.Tensor, least: float) -> torch.Tensor:
        """Values [n, d_out] that bring W k to ``goals`` [n, d_out] once keys [n, d_in] are written.

        With S = KᵀA⁻¹K writing V moves W K by the share S(I+S)⁻¹ of V − W K; so V = G + (G − W K)S⁻¹, S's
        eigenvalues taken as at least ``least``: what the prior resists is not forced.
        """
        K, G, F = self._columns(keys, goals)
        sizes, vectors = torch.linalg.eigh(F.T @ self._inverse @ F)
        away = (G - self.weight @ K) @ vectors / sizes.clamp(min=least)
        values: torch.Tensor = (G + away @ vectors.T).T
        return values

    def delta_norm(self) -> float:
        """‖W − W0‖ / ‖W0‖ (Frobenius)."""
        return float((self.weight - self.base).norm() / self.base.norm())

    def _columns(
        self, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Keys K [d_in, n], values V [d_out, n] and features F = P K, all fp64."""
        K = keys.to(self.weight.device).double().T
        V = values.to(self.weight.device).double().T
        if not (K.isfinite().all() and V.isfinite().all()):
            raise EditError("a key or value is not finite", reason="not_finite")
        return K, V, self._projected(K)

    def _strength(self, F: torch.Tensor) -> torch.Tensor:
        resisted: torch.Tensor = (F * (self._prior_inverse @ F)).sum(0)
        return resisted

    def _projected(self, K: torch.Tensor) -> torch.Tensor:
        return K if self.projector is None else self.projector @ K

    def _updated(self, F: torch.Tensor, sign: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Gram matrix and inverse after F is added or removed; refactorised when the residual is large."""
        gram = self._gram + sign * (F @ F.T)
        if F.shape[1] * _WOODBURY_SHARE > F.shape[0]:
            return gram, _invert(gram)
        inverse = _updated_inverse(self._inverse, F, sign)
        residual = (gram @ (inverse @ F) - F).norm()
        if not residual <= _RESIDUAL * F.norm():
            inverse = _invert(gram)
        return gram, inverse

    def _set(self, weight: torch.Tensor, gram: torch.Tensor, inverse: torch.Tensor, pairs: int) -> None:
        if not weight.isfinite().all():
            raise EditError("the solution is not finite", reason="not_finite")
        self.weight, self._gram, self._inverse, self._pairs = weight, gram, inverse, pairs


def null_space(moment: torch.Tensor, threshold: float) -> torch.Tensor:
    """P [d_in, d_in]: the projector onto the eigenvectors of C whose eigenvalues are below the threshold.

    Raises:
        EditError: there is none.
    """
    eigenvalues, vectors = torch.linalg.eigh(moment.double())
    free = vectors[:, eigenvalues < threshold]
    if free.shape[1] == 0:
        raise EditError(f"C has no eigenvalue below {threshold}", hint="raise null_space_threshold")
    projector: torch.Tensor = free @ free.T
    return projector


def on_grid(delta: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """ΔW [d_out, d_in] rounded to multiples of 2⁻¹⁶ of the power of two below W0's root mean square.

    fp64 sums depend on their order in the last digits. On the grid the published weights do not, but for an
    entry between two points: the same pairs give the same bits, whatever was written and forgotten before.
    """
    typical = float(base.norm()) / math.sqrt(base.numel())
    step = _GRID * 2.0 ** math.floor(math.log2(typical)) if typical else _GRID
    return (delta / step).round() * step


def restrained(delta: torch.Tensor, base: torch.Tensor, logarithm: float) -> torch.Tensor:
    """ΔW whose singular values above σmax(W0) grow by a logarithm (PRUNE, arXiv 2405.16821, section 4.2).

    σ becomes log_b σ − log_b σmax + σmax; smaller ones stay. The sum of all updates is restrained once, in
    place of them, never added to them.
    """
    left, sigma, right = torch.linalg.svd(delta, full_matrices=False)
    largest = torch.linalg.matrix_norm(base, ord=2)
    grown = (sigma / largest).clamp(min=1.0).log() / math.log(logarithm) + largest
    kept: torch.Tensor = (left * torch.where(sigma > largest, grown, sigma)) @ right
    return kept


def _solve(gram: torch.Tensor, inverse: torch.Tensor, F: torch.Tensor) -> torch.Tensor:
    """A⁻¹F, refined once by its own residual: updates of the inverse cost digits where keys are strong."""
    solved = inverse @ F
    refined: torch.Tensor = solved + inverse @ (F - gram @ solved)
    return refined


def _updated_inverse(inverse: torch.Tensor, F: torch.Tensor, sign: int) -> torch.Tensor:
    """Woodbury: (A ± F Fᵀ)⁻¹ = A⁻¹ ∓ A⁻¹F (I ± FᵀA⁻¹F)⁻¹ FᵀA⁻¹."""
    solved = inverse @ F
    small = torch.eye(F.shape[1], dtype=F.dtype, device=F.device) + sign * (F.T @ solved)
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
