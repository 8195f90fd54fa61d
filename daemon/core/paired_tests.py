"""Paired tests that tell a worse revision from noise.

A loss is how much worse an item is now: in hits (1 for right to wrong, -1 for the reverse) or in nats.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pvariance

from daemon.core.config.watch import WatchConfig
from daemon.core.ledger.outcomes import Outcomes, Scale

_RESAMPLES = 10_000  # p-values down to 1e-4, below the default significance of 0.002
_STEADY = 4.0  # items², added to the variance so that one or two flipped items do not count as drift
_CLIP = 4.0  # standard errors that one revision may add, so that one outlier does not count as drift


def mcnemar(losses: Sequence[float]) -> float:
    """Return the exact one-sided p-value P(Bin(b + c, ½) ≥ b) of McNemar's test (1947).

    b items were right and are wrong now, c items the reverse. Unchanged items do not count.
    """
    lost = sum(1 for loss in losses if loss > 0)
    changed = sum(1 for loss in losses if loss)
    tail = sum(math.comb(changed, k) for k in range(lost, changed + 1))
    return float(tail / 2**changed)


def bootstrap_p(losses: Sequence[float], budget: float, seed: int = 0) -> float:
    """Return the one-sided p-value of a mean loss of at most ``budget`` by resampling (Efron 1979).

    It is at least 1 / (resamples + 1), and 1 for a single item. The same seed gives the same value.
    """
    count = len(losses)
    if count < 2 or fmean(losses) <= budget:
        return 1.0
    chance = random.Random(seed)  # noqa: S311  # resampling, not a secret
    limit = budget * count
    below = sum(1 for _ in range(_RESAMPLES) if sum(chance.choices(losses, k=count)) <= limit)
    return (below + 1) / (_RESAMPLES + 1)


@dataclass(frozen=True)
class Paired:
    """Mean loss and p-value of the same items before and now, with the loss that one revision may cost."""

    loss: float
    p_value: float
    budget: float

    def is_step(self, level: float) -> bool:
        """Return whether the loss reaches the budget and is significant at this level."""
        return self.p_value < level and self.loss >= self.budget


def compare(now: Outcomes | None, then: Outcomes | None, watch: WatchConfig, seed: int) -> Paired | None:
    """Test hits with McNemar's test and nats with the bootstrap, or return None without common items."""
    losses = now.losses(then) if now and then else []
    if not losses or now is None:
        return None
    hits = now.scale is Scale.HITS
    p_value = mcnemar(losses) if hits else bootstrap_p(losses, watch.step_budget_nats, seed)
    return Paired(fmean(losses), p_value, watch.step_budget if hits else watch.step_budget_nats)


def standardised(losses: Sequence[float], slack: float, *, hits: bool) -> float:
    """Return the mean loss beyond ``slack`` in standard errors, clipped, or 0 without any loss.

    The error comes from Σ loss² for hits, as in McNemar's statistic, plus a constant for small suites.
    For nats it comes from the variance of the losses over the items.
    """
    count = len(losses)
    if count == 0 or not any(losses):
        return 0.0
    beyond = sum(losses) - slack * count
    square = sum(loss * loss for loss in losses) + _STEADY if hits else count * pvariance(losses)
    if square <= 0.0:
        return math.copysign(_CLIP, beyond)
    return max(-_CLIP, min(_CLIP, beyond / math.sqrt(square)))


@dataclass(frozen=True)
class Drift:
    """A one-sided cumulative sum (CUSUM, Page 1954) and the revision after which it began to rise."""

    total: float = 0.0
    since: int = 0

    def after(self, number: int, score: float, allowance: float) -> "Drift":
        """Return the sum with one more revision, whose standardised loss is ``score``."""
        total = self.total + score - allowance
        return Drift(total, self.since) if total > 0 else Drift(0.0, number)


def mean_of(series: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean of each item over several revisions of one suite."""
    return [fmean(values) for values in zip(*series, strict=True)]
