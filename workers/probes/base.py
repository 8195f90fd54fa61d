"""What a probe is: something measured on the weights in an editor, judged by a bound of the config."""

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
_EPOCH = 16  # revisions over which a sample of facts stays the same, so that neighbours share items
_OLD_SHARE = 0.5  # of a sample of facts that is drawn from the older half of them


@dataclass(frozen=True)
class Measurement:
    """What a probe found; a score of None with no items means that there was nothing to measure.

    ``outcomes`` has the items one by one, for the judge; ``bound`` takes the place of the configured one
    where the bound follows from what the base model can do.
    """

    score: float | None
    items: int
    details: dict[str, Any] = field(default_factory=dict)
    outcomes: Outcomes | None = None
    bound: float | None = None


@dataclass(frozen=True)
class ProbeContext:
    """The weights under test and the facts that they should hold.

    ``written`` are the facts of the batch, ``older`` all other active ones, oldest first; ``seed`` (the
    revision's number) repeats a sample.
    """

    editor: Editor
    written: Sequence[Fact]
    older: Sequence[Fact]
    watch: WatchConfig
    base: "BaseAnswers"
    seed: int = 0

    def sample(self, items: Sequence[Item], size: int) -> list[Item]:
        """At most ``size`` of the items, the same ones for the same seed."""
        if len(items) <= size:
            return list(items)
        return random.Random(self.seed).sample(list(items), size)  # noqa: S311  # a sample, not a secret

    def sample_facts(self, size: int) -> list[Fact]:
        """Older facts, half of them from the older half; nearly the same ones for some revisions on end."""
        facts, epoch = list(self.older), self.seed // _EPOCH
        if len(facts) <= size:
            return facts

        def rank(fact: Fact) -> str:
            return hashlib.sha256(f"{epoch} {fact.correction_id}".encode()).hexdigest()

        middle, old = len(facts) // 2, round(size * _OLD_SHARE)
        return [*sorted(facts[:middle], key=rank)[:old], *sorted(facts[middle:], key=rank)[: size - old]]


@dataclass(frozen=True)
class Probe:
    """A named measurement; ``version`` grows when its meaning changes.

    ``bound`` picks the floor (or, when ``ceiling``, the ceiling) from the config.
    """

    name: str
    version: int
    measure: Callable[[ProbeContext], Measurement]
    bound: Callable[[WatchConfig], float]
    ceiling: bool = False

    def judge(self, score: float | None, bound: float) -> ProbeResult:
        """ok on the right side of the bound; NaN is on neither side and therefore degraded."""
        if score is None:
            return ProbeResult.OK
        good = score <= bound if self.ceiling else score >= bound
        return ProbeResult.OK if good else ProbeResult.DEGRADED


class BaseAnswers:
    """What the unedited model says, computed once a prompt; the base weights are shown only for that."""

    MAX_NEW_TOKENS = 8

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self._answers: dict[str, str] = {}
        self._found: dict[tuple[object, ...], Any] = {}

    def answers(self, prompts: Sequence[str]) -> list[str]:
        """The base model's greedy continuation of each prompt."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._answers]
        if missing:
            with self._editor.base_weights():
                found = self._editor.model.greedy(missing, self.MAX_NEW_TOKENS)
            self._answers.update(zip(missing, found, strict=True))
        return [self._answers[prompt] for prompt in prompts]

    def of(self, key: tuple[object, ...], measure: Callable[[], Item]) -> Item:
        """What ``measure`` finds on the base model, measured once for a key."""
        if key not in self._found:
            with self._editor.base_weights():
                self._found[key] = measure()
        found: Item = self._found[key]
        return found


def run_probes(
    probes: Sequence[Probe],
    context: ProbeContext,
    clock: Clock,
    *,
    begins: Callable[[str], None] = lambda _name: None,
    fatal: frozenset[str] = frozenset(),
) -> list[ProbeRow]:
    """Measure each probe; one that fails is unknown and does not keep the others from running.

    ``begins`` is told before each: if this process dies then, its successor knows by what. Probes in
    ``fatal`` have done that before: they are not run again and are unknown.
    """
    rows = []
    for probe in probes:
        if probe.name in fatal:
            rows.append(
                _row(probe, context, Measurement(None, 0, {"error": "it ended its process"}), 0.0, True)
            )
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
    except (Exception, SystemExit) as error:  # any bug in a probe means «not known», never «fine»
        log.exception("probe failed", probe=probe.name)
        measured = Measurement(None, 0, {"error": f"{type(error).__name__}: {error}"[:500]})
        unknown = True
    return _row(probe, context, measured, clock.monotonic() - start, unknown)


def _checked(measured: object) -> Measurement:
    """Refuse what is no measurement; NaN is one, of a broken model.

    Raises:
        ProbeError: it is no measurement, or its score is no number.
    """
    if not isinstance(measured, Measurement):
        raise ProbeError(f"the probe answered {str(measured)[:100]!r}")
    score = measured.score
    if score is None and measured.items:
        raise ProbeError(f"the probe looked at {measured.items} items and gave no score")
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float)):
        raise ProbeError(f"the probe's score is {str(score)[:100]!r}")
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
