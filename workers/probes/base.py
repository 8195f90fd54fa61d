"""The interface of probes: a measurement on the weights of an editor, judged by a configured bound."""

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from daemon.core.clock import Clock
from daemon.core.config.watch import WatchConfig
from daemon.core.errors import ProbeError
from daemon.core.ledger.outcomes import Outcomes
from daemon.core.ledger.proposals import ProbeRow
from daemon.core.log import get_logger
from daemon.core.names import ProbeResult
from workers.editing.editor import Editor
from workers.probes.limit import time_limit
from workers.revisions.facts import Fact

log = get_logger("errata.probes")
Item = TypeVar("Item")
_EPOCH = 16  # revisions that share a sample of facts, so that the judge can compare the same items
_OLD_SHARE = 0.5  # share of a sample from the older half of the facts, which edits have disturbed longest


@dataclass(frozen=True)
class Measurement:
    """The result of a probe, where a score of None with no items means that there was nothing to measure.

    ``outcomes`` are the single items, which the judge compares. ``bound`` replaces the configured bound where
    it depends on the base model.
    """

    score: float | None
    items: int
    details: dict[str, Any] = field(default_factory=dict)
    outcomes: Outcomes | None = None
    bound: float | None = None


@dataclass(frozen=True)
class ProbeContext:
    """The weights under test and the facts that they should answer.

    ``written`` are the facts of the batch, ``older`` all other active ones, oldest first. ``seed`` (the
    revision's number) draws the samples.
    """

    editor: Editor
    written: Sequence[Fact]
    older: Sequence[Fact]
    watch: WatchConfig
    base: "BaseAnswers"
    seed: int = 0

    def sample(self, items: Sequence[Item], size: int) -> list[Item]:
        """A random sample of at most ``size`` items, which depends on the seed alone."""
        if len(items) <= size:
            return list(items)
        return random.Random(self.seed).sample(list(items), size)  # noqa: S311  # a sample, not a secret

    def sample_facts(self, size: int) -> list[Fact]:
        """A sample of older facts, half of it from the older half, that changes little between revisions."""
        facts, epoch = list(self.older), self.seed // _EPOCH
        if len(facts) <= size:
            return facts

        def rank(fact: Fact) -> str:
            return hashlib.sha256(f"{epoch} {fact.correction_id}".encode()).hexdigest()

        middle, old = len(facts) // 2, round(size * _OLD_SHARE)
        return [*sorted(facts[:middle], key=rank)[:old], *sorted(facts[middle:], key=rank)[: size - old]]


@dataclass(frozen=True)
class Probe:
    """A named measurement with its bound.

    ``version`` grows when the meaning of the score changes. ``bound`` reads the floor (or the ceiling, where
    ``ceiling`` is true) from the configuration.
    """

    name: str
    version: int
    measure: Callable[[ProbeContext], Measurement]
    bound: Callable[[WatchConfig], float]
    ceiling: bool = False

    def judge(self, score: float | None, bound: float) -> ProbeResult:
        """OK where there is no score or it is within the bound, else degraded, which includes NaN."""
        if score is None:
            return ProbeResult.OK
        good = score <= bound if self.ceiling else score >= bound
        return ProbeResult.OK if good else ProbeResult.DEGRADED


class BaseAnswers:
    """Answers and scores of the unedited model, each computed once by showing the base weights."""

    MAX_NEW_TOKENS = 8  # of an answer: objects are short

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self._answers: dict[str, str] = {}
        self._measured: dict[tuple[object, ...], Any] = {}

    def answers(self, prompts: Sequence[str]) -> list[str]:
        """The base model's greedy continuation of each prompt."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._answers]
        if missing:
            with self._editor.base_weights():
                answers = self._editor.model.greedy(missing, self.MAX_NEW_TOKENS)
            self._answers.update(zip(missing, answers, strict=True))
        return [self._answers[prompt] for prompt in prompts]

    def of(self, key: tuple[object, ...], measure: Callable[[], Item]) -> Item:
        """The result of ``measure`` on the base model, computed once for each key."""
        if key not in self._measured:
            with self._editor.base_weights():
                self._measured[key] = measure()
        measured: Item = self._measured[key]
        return measured


def run_probes(
    probes: Sequence[Probe],
    context: ProbeContext,
    clock: Clock,
    *,
    begins: Callable[[str], None] = lambda _name: None,
    fatal: frozenset[str] = frozenset(),
) -> list[ProbeRow]:
    """Run each probe, where one that fails gives the result ``unknown`` and does not stop the others.

    ``begins`` is called with a probe's name before it runs, so that its end of the process can be recorded.
    Probes in ``fatal`` have ended their process before. They are not run again and are unknown.
    """
    rows = []
    for probe in probes:
        if probe.name in fatal:
            ended = Measurement(None, 0, {"error": "it ended its process in an earlier run"})
            rows.append(_row(probe, context, ended, 0.0, unknown=True))
            continue
        begins(probe.name)
        rows.append(_run(probe, context, clock))
    return rows


def _run(probe: Probe, context: ProbeContext, clock: Clock) -> ProbeRow:
    start = clock.monotonic()
    unknown = False
    try:
        with time_limit(context.watch.probe_seconds):
            measured = _checked(probe.measure(context))
    except (Exception, SystemExit) as error:  # a bug in a probe makes its result unknown, never good
        log.exception("probe failed", probe=probe.name)
        measured = Measurement(None, 0, {"error": f"{type(error).__name__}: {error}"[:500]})
        unknown = True
    return _row(probe, context, measured, clock.monotonic() - start, unknown)


def _checked(measured: object) -> Measurement:
    """Check that a probe returned a measurement, whose score may be NaN on a broken model."""
    if not isinstance(measured, Measurement):
        raise ProbeError(f"the probe returned {str(measured)[:100]!r}, which is no measurement")
    score = measured.score
    if score is None and measured.items:
        raise ProbeError(f"the probe measured {measured.items} items but gave no score")
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float)):
        raise ProbeError(f"the probe's score {str(score)[:100]!r} is not a number")
    return measured


def _row(
    probe: Probe, context: ProbeContext, measured: Measurement, seconds: float, unknown: bool
) -> ProbeRow:
    bound = probe.bound(context.watch) if measured.bound is None else measured.bound
    score = None if measured.score is None else float(measured.score)
    finite = score is None or math.isfinite(score)
    return ProbeRow(
        probe=probe.name,
        version=probe.version,
        result=ProbeResult.UNKNOWN if unknown else probe.judge(score, bound),
        score=score if finite else None,
        bound=bound,
        items=measured.items,
        seconds=seconds,
        details=measured.details if finite else measured.details | {"score": str(score)},
        outcomes=measured.outcomes,
    )
