"""The statistics of the watch: is this revision worse than one before it, or is that noise? Pure functions.

Losses are paired: for each item how much worse it is now (1: the answer was right and is not; or nats).
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pvariance

from daemon.core.config.watch import WatchConfig
from daemon.core.ledger.outcomes import Outcomes, Scale

_RESAMPLES = 10_000
_STEADY = 4.0  # items² added to the variance: one or two items that tip for good are no drift
_CLIP = 4.0  # standard errors that one revision may add to the sum: one outlier alone is no drift


def mcnemar(losses: Sequence[float]) -> float:
    """Exact one-sided p-value of the paired test of accuracies (McNemar 1947): P(Bin(b + c, ½) ≥ b).

    b items were right and are wrong now, c the other way round; those that did not change say nothing.
    """
    lost = sum(1 for loss in losses if loss > 0)
    changed = sum(1 for loss in losses if loss)
    tail = sum(math.comb(changed, k) for k in range(lost, changed + 1))
    return float(tail / 2**changed)


def bootstrap_p(losses: Sequence[float], budget: float, seed: int = 0) -> float:
    """One-sided p-value of «the mean loss is at most ``budget``», by resampling the items (Efron 1979).

    Never below 1 / (resamples + 1); the same seed gives the same value. The losses of one item show nothing.
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
    """What a paired test says of the same items before and now; ``budget`` is what one step may lose."""

    loss: float
    p_value: float
    budget: float

    def is_step(self, level: float) -> bool:
        """Whether the loss is above the budget and, at this level, no noise."""
        return self.p_value < level and self.loss >= self.budget


def compare(now: Outcomes | None, then: Outcomes | None, watch: WatchConfig, seed: int) -> Paired | None:
    """McNemar's test for hits, the bootstrap for nats; None where no items are the same."""
    losses = now.losses(then) if now and then else []
    if not losses or now is None:
        return None
    hits = now.scale is Scale.HITS
    p_value = mcnemar(losses) if hits else bootstrap_p(losses, watch.step_budget_nats, seed)
    return Paired(fmean(losses), p_value, watch.step_budget if hits else watch.step_budget_nats)


def standardised(losses: Sequence[float], slack: float, *, hits: bool) -> float:
    """The mean loss beyond ``slack`` in standard errors, clipped; 0 where there is nothing to compare.

    For hits the error is that of McNemar's statistic, Σ loss², steadied for small suites; for nats the
    spread of the losses over the items.
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
    """A one-sided cumulative sum (Page 1954) and the revision after which it began to rise."""

    total: float = 0.0
    since: int = 0

    def after(self, number: int, score: float, allowance: float) -> "Drift":
        """The sum with one more revision, whose standardised loss is ``score``."""
        total = self.total + score - allowance
        return Drift(total, self.since) if total > 0 else Drift(0.0, number)


def mean_of(series: Sequence[Sequence[float]]) -> list[float]:
    """The mean of each item over several revisions of one suite."""
    return [fmean(values) for values in zip(*series, strict=True)]
