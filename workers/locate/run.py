"""Choose layers: find facts that the model knows, trace them, and try pairs of layers by edits."""

import random
from dataclasses import dataclass
from pathlib import Path

from daemon.core.config.settings import Config
from daemon.core.errors import ConfigError, ModelError
from workers.bench.baselines.registry import resolve
from workers.bench.report import Report
from workers.locate.facts import answered, make_trial, read_known
from workers.locate.sweep import Choice, Pair, Sweep, propose
from workers.locate.tracing import Trace, trace
from workers.models.open import open_model
from workers.progress import Step

_TRACE = "trace"
_USEFUL = 0.5  # greedy efficacy below which no pair may be recommended


@dataclass(frozen=True)
class Options:
    """How much is traced and tried, on the facts of a file or (None) the shipped ones."""

    recipe: str
    facts: Path | None = None
    traced: int = 24
    noises: int = 4
    edits: int = 12
    batch: int = 8
    pairs: int = 3
    against: tuple[Pair, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Located:
    """The chosen layers with their evidence."""

    layers: tuple[int, ...]  # all that the recipe edits
    trace: Trace
    choice: Choice
    known: int  # facts that the model answers
    traced: int  # how many of them

    def require_useful(self) -> None:
        """Raise ModelError for a choice at which less than half of the edits succeed."""
        best = next(row for row in self.choice.checked if row.layers == self.choice.layers)
        if best.scores.greedy < _USEFUL:
            raise ModelError(
                f"no pair of layers edits this model: at the best, {best.layers}, "
                f"{best.scores.greedy:.0%} of the edits are answered",
                hint="other settings in edit.recipe_overrides, or another recipe",
            )


def locate_layers(config: Config, options: Options, kept: Report, step: Step) -> Located:
    """Select facts that the model knows, trace some, propose pairs and try them by edits.

    A trace or an attempt that ``kept`` has of an interrupted run is not repeated. Raises ConfigError if file,
    recipe or a pair cannot be used or the model knows too little, ModelError if it is not loaded or traced.
    """
    facts = read_known(options.facts)
    model = open_model(config)
    for pair in options.against:
        if not 0 <= pair[0] < pair[1] < model.n_layers:
            raise ConfigError(f"{pair} is no ascending pair of layers of a model of {model.n_layers}")
    settings = dict(config.edit.recipe_overrides) | {"layers": (0, model.n_layers - 1)}
    recipe = resolve(options.recipe, settings, model.n_layers)
    step("known facts", 0, len(facts))
    known = answered(model, facts)
    step("known facts", len(facts), len(facts))
    trial = make_trial(known, options.edits, options.seed)
    sample = random.Random(options.seed).sample(known, min(options.traced, len(known)))
    traced = _kept_trace(kept)
    if traced is None:
        traced = trace(
            model, sample, options.noises, options.seed, lambda done, total: step("trace", done, total)
        )
        kept.add(traced, what=_TRACE)
    sweep = Sweep(model, recipe, options.batch, config.data_dir / "statistics", config.model.corpus, kept)
    choice = sweep.choose(trial, propose(traced, options.pairs, options.against), step)
    return Located(sweep.edited(choice.layers), traced, choice, len(known), len(sample))


def _kept_trace(kept: Report) -> Trace | None:
    row = next((row for row in kept.rows if row["what"] == _TRACE), None)
    return None if row is None else Trace(**{name: row[name] for name in Trace.__dataclass_fields__})
