"""What a probe is: something measured on the weights in an editor, judged by a bound of the config."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from daemon.core.clock import Clock
from daemon.core.config import WatchConfig
from daemon.core.log import get_logger
from daemon.core.names import ProbeResult
from daemon.core.proposals import ProbeRow
from workers.editing.editor import Editor
from workers.plan import Fact

log = get_logger("errata.probes")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Measurement:
    """What a probe found; a score of None with no items means that there was nothing to measure."""

    score: float | None
    items: int
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ProbeContext:
    """The weights under test and the facts that they should hold.

    ``written`` are the facts of the batch, ``older`` all other active ones; ``seed`` repeats a sample.
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
        self._token_nll: dict[tuple[str, ...], float] = {}

    def answers(self, prompts: Sequence[str]) -> list[str]:
        """The base model's greedy continuation of each prompt."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._answers]
        if missing:
            with self._editor.base_weights():
                found = self._editor.model.greedy(missing, self.MAX_NEW_TOKENS)
            self._answers.update(zip(missing, found, strict=True))
        return [self._answers[prompt] for prompt in prompts]

    def token_nll(self, texts: Sequence[str]) -> float:
        """The base model's mean negative log-likelihood of a token of ``texts``, in nats."""
        key = tuple(texts)
        if key not in self._token_nll:
            with self._editor.base_weights():
                self._token_nll[key] = self._editor.model.token_nll(texts)
        return self._token_nll[key]


def run_probes(probes: Sequence[Probe], context: ProbeContext, clock: Clock) -> list[ProbeRow]:
    """Measure each probe; one that fails is unknown and does not keep the others from running."""
    return [_run(probe, context, clock) for probe in probes]


def _run(probe: Probe, context: ProbeContext, clock: Clock) -> ProbeRow:
    start = clock.monotonic()
    bound = probe.bound(context.watch)
    try:
        measured = probe.measure(context)
        result = probe.judge(measured.score, bound)
    except Exception as error:  # any bug in a probe means «not known», never «fine»
        log.exception("probe failed", probe=probe.name)
        measured = Measurement(None, 0, {"error": f"{type(error).__name__}: {error}"[:500]})
        result = ProbeResult.UNKNOWN
    return ProbeRow(
        probe=probe.name,
        version=probe.version,
        result=result,
        score=measured.score,
        bound=bound,
        items=measured.items,
        seconds=clock.monotonic() - start,
        details=measured.details,
    )
