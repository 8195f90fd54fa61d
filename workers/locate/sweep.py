"""Propose pairs of boundary layers from a trace, try them by real edits, and choose one.

Tracing shows where a fact is recalled, which need not be where it is best written (arXiv 2301.04213). So it
only proposes pairs. The choice depends on the model's scores after the same facts were written at each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, harmonic_mean

from workers.bench.baselines.registry import method
from workers.bench.facts import BenchFact
from workers.bench.lab import batches
from workers.bench.report import Report
from workers.bench.runs import Sequencer
from workers.bench.scores import Scorer, Scores
from workers.editing.editor import Associations
from workers.editing.model import EditableModel
from workers.editing.recipes import Recipe
from workers.editing.statistics import Statistics, load_or_compute
from workers.locate.facts import Trial
from workers.locate.tracing import Trace
from workers.progress import Step

Pair = tuple[int, int]
_PARTS_OF_PEAK = (0.5, 0.75, 0.9)
"""The critical layers are those around the peak of the MLP curve that reach this part of it."""
_PUBLISHED = (4 / 32, 8 / 32)
"""Where BLUE (arXiv 2502.03748) has the boundary layers of Llama-3-8B."""
FINALISTS = 2


@dataclass(frozen=True)
class Candidate:
    """A pair of boundary layers and its source."""

    layers: Pair
    source: str


@dataclass(frozen=True)
class Tried:
    """The model's scores after real edits at a pair."""

    layers: Pair
    source: str
    scores: Scores
    norm: float  # ‖W − W0‖/‖W0‖ of the layer that moved most
    refused: int  # edits that a guard refused

    @property
    def merit(self) -> float:
        """The harmonic mean of greedy efficacy, PS and NS, divided by the perplexity ratio (1 at best)."""
        scores = self.scores
        return harmonic_mean([scores.greedy, scores.ps, scores.ns]) / scores.perplexity


@dataclass(frozen=True)
class Choice:
    """All pairs that were tried, best first, those that were checked, and the best of these."""

    tried: list[Tried]
    checked: list[Tried]
    layers: Pair

    def overall(self, layers: Pair) -> float:
        """Return the mean merit of a checked pair over both sets of edits."""
        return fmean(one.merit for one in (*self.tried, *self.checked) if one.layers == layers)


def propose(trace: Trace, most: int, against: Sequence[Pair] = ()) -> list[Candidate]:
    """Return at most ``most`` pairs of critical layers, widest first, and those of ``against``."""
    count = len(trace.mlp)
    ranges = [(critical_layers(trace.mlp, part), f"{part:.0%} of the peak") for part in _PARTS_OF_PEAK]
    first, last = (round(share * count) for share in _PUBLISHED)
    ranges.append(((first, last), "as in Llama-3-8B"))
    middle = ranges[-2][0]
    ranges.append(((middle[0], middle[1] + max(2, count // 8)), "peak and above"))
    found: dict[Pair, str] = {}
    for pair, source in ranges:
        found.setdefault(_apart(pair, count), source)
    chosen = dict(list(found.items())[:most])
    for pair in against:
        chosen[pair] = f"{chosen[pair]}, --against" if pair in chosen else "--against"
    return [Candidate(pair, source) for pair, source in chosen.items()]


def critical_layers(curve: Sequence[float], part: float) -> Pair:
    """Return first and last of the layers around the curve's peak that reach ``part`` of it without a gap.

    The model's first layer is left out, for its MLP recovers the token itself (workers/locate/tracing.py).
    """
    peak = max(range(1, len(curve)), key=lambda layer: curve[layer])
    first = last = peak
    while first > 1 and curve[first - 1] >= part * curve[peak]:
        first -= 1
    while last < len(curve) - 1 and curve[last + 1] >= part * curve[peak]:
        last += 1
    return first, last


def _apart(pair: Pair, count: int) -> Pair:
    """Return two different layers of the model, a single one with the next."""
    first, last = max(0, min(pair[0], count - 2)), min(pair[1], count - 1)
    return first, max(last, first + 1)


class Sweep:
    """Tries pairs of layers on one model by one recipe, each from the base weights."""

    def __init__(
        self,
        model: EditableModel,
        recipe: Recipe,
        batch: int,
        statistics: Path,
        corpus: Path | None,
        kept: Report,
    ) -> None:
        self.model, self.recipe, self.batch, self._kept = model, recipe, batch, kept
        self._folder, self._corpus = statistics, corpus

    def choose(self, trial: Trial, candidates: Sequence[Candidate], step: Step) -> Choice:
        """Try all pairs, check the best and those of ``--against`` on other facts, and choose one."""
        layers = sorted({layer for one in candidates for layer in self.edited(one.layers)})
        statistics = load_or_compute(
            self.model,
            layers,
            self._folder,
            self._corpus,
            lambda done, total: step("statistics", done, total),
        )
        tried = []
        for done, one in enumerate(candidates):
            step("sweep", done, len(candidates))
            tried.append(self._once("sweep", one, trial.sweep, statistics))
        step("sweep", len(candidates), len(candidates))
        tried.sort(key=lambda one: one.merit, reverse=True)
        final = [one for place, one in enumerate(tried) if place < FINALISTS or "--against" in one.source]
        checked = []
        for done, row in enumerate(final):
            step("check", done, len(final))
            checked.append(self._once("check", Candidate(row.layers, row.source), trial.check, statistics))
        step("check", len(final), len(final))
        best = max((row.layers for row in checked), key=Choice(tried, checked, (0, 0)).overall)
        return Choice(tried, checked, best)

    def edited(self, pair: Pair) -> tuple[int, ...]:
        """Return the layers that the recipe edits between a first and a last one."""
        return pair if self.recipe.own_targets else tuple(range(pair[0], pair[1] + 1))

    def _once(self, what: str, one: Candidate, facts: Sequence[BenchFact], statistics: Statistics) -> Tried:
        """Make an attempt, or return its result from an interrupted run."""
        for row in self._kept.rows:
            if row["what"] == what and tuple(row["layers"]) == one.layers:
                return Tried(one.layers, one.source, Scores(**row["scores"]), row["norm"], row["refused"])
        found = self.attempt(one, facts, statistics)
        self._kept.add(found, what=what)
        return found

    def attempt(self, one: Candidate, facts: Sequence[BenchFact], statistics: Statistics) -> Tried:
        """Write the facts, measure, and restore the base weights."""
        recipe = self.recipe.model_copy(update={"layers": self.edited(one.layers)})
        editor = method(recipe.name).load()(self.model, statistics, recipe)
        scorer, sequencer = Scorer(editor), Sequencer(editor, review=0)
        try:
            for some in batches(facts, self.batch):
                sequencer.write([fact.request for fact in some])
            norm = max(total for _, total in editor.delta_norms().values())
            return Tried(one.layers, one.source, scorer.score(facts), norm, sequencer.refused)
        finally:
            editor.restore(Associations([], {}, {}))
