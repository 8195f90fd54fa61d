"""The benches write facts by an editor, measure, and add rows to a report.

Rows that a report has are not measured again, and facts written before an interruption are restored.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from statistics import fmean
from typing import Any

import torch

from daemon.core.errors import EditError
from workers.bench.facts import BenchFact
from workers.bench.lab import Lab, batches, forward_unit, timed
from workers.bench.report import Report
from workers.bench.resume import Keeper
from workers.bench.scores import Scorer, base_scores
from workers.editing.editor import Associations, Editor
from workers.editing.guards import retry_without
from workers.editing.prompts import EditRequest
from workers.editing.recipes import Recipe
from workers.progress import Step

_CYCLE = 3  # rounds after which a revised fact has its first object again
_BASE, _RETRACTED_BASE = "(base)", "retracted facts, base model"


def run_table(
    lab: Lab, facts: Sequence[BenchFact], recipes: Sequence[Recipe], size: int, report: Report, step: Step
) -> None:
    """Add a row of all metrics for the base model and for each recipe after its last batch."""
    unit = forward_unit(lab.model)
    for recipe in recipes:
        if report.has(recipe=recipe.name):
            step(recipe.name, len(facts), len(facts))
            continue
        editor = lab.editor(recipe)
        scorer = Scorer(editor)
        if not report.has(recipe=_BASE):
            report.add(base_scores(editor, scorer, facts), recipe=_BASE)
        seconds, written = 0.0, list[Associations]()
        for done, batch in enumerate(batches(facts, size)):
            step(recipe.name, done * size, len(facts))
            seconds += timed(partial(_write_to, written, editor, batch))
        report.add(
            scorer.score(facts),
            _norms(editor),
            recipe=recipe.name,
            n=len(facts),
            batch=size,
            refused=len(facts) - sum(len(part.ids) for part in written),
            units_per_fact=seconds / len(facts) / unit,
            seconds_per_fact=seconds / len(facts),
        )
        step(recipe.name, len(facts), len(facts))
        lab.release(editor)


class Sequencer:
    """Lifelong editing of one model, batch after batch, with older facts reviewed and mended.

    After each batch the ``review`` facts asked longest ago are asked again. Those that slipped are mended.
    """

    def __init__(self, editor: Editor, review: int) -> None:
        self.editor, self.review = editor, review
        self.requests: list[EditRequest] = []
        self.pairs: list[Associations] = []
        self.mended = 0
        self.refused = 0
        self.done = 0  # facts that were given
        self._asked: list[int] = []
        self._sizes: list[int] = []  # facts of each single write

    def keep(self, keeper: Keeper, seconds: float) -> None:
        """Save all that ``resume`` needs."""
        pairs = iter(self.pairs)
        parts = [Associations.concat(list(islice(pairs, size))) for size in self._sizes]
        noted = {"done": self.done, "mended": self.mended, "refused": self.refused, "asked": self._asked}
        keeper.save(self.editor.recipe.name, self.editor, parts, seconds=seconds, **noted)

    def resume(self, keeper: Keeper, requests: Sequence[EditRequest]) -> float:
        """Resume an interrupted run over ``requests`` and return the seconds that it had taken."""
        saved = keeper.restore(self.editor.recipe.name, self.editor)
        if saved is None:
            return 0.0
        by_id = {request.id: request for request in requests}
        self._sizes = [len(part.ids) for part in saved.parts]
        self.pairs = [part.select([row]) for part in saved.parts for row in range(len(part.ids))]
        self.requests = [by_id[one] for part in saved.parts for one in part.ids]
        self.done, self.mended = saved.about["done"], saved.about["mended"]
        self.refused, self._asked = saved.about["refused"], list(saved.about["asked"])
        return float(saved.about["seconds"])

    def write(self, batch: Sequence[EditRequest]) -> None:
        """Write one batch, then review older facts."""
        known = len(self.requests)
        self._write_guarded(batch)
        self.done += len(batch)
        recipe = self.editor.recipe
        if self.review and recipe.exact and recipe.mends:
            self._review_older(known)

    def _write_guarded(self, batch: Sequence[EditRequest]) -> None:
        for part, written in _write_allowed(self.editor, batch):
            self._asked += [len(self.requests)] * len(part)
            self._sizes.append(len(part))
            self.requests += part
            self.pairs += [written.select([row]) for row in range(len(part))]
            batch = [request for request in batch if request not in part]
        self.refused += len(batch)

    def _review_older(self, known: int) -> None:
        oldest = sorted(range(known), key=lambda i: self._asked[i])[: self.review]
        asked = [self.requests[i] for i in oldest]
        _, holds = self.editor.model.target_scores(
            [one.prompt for one in asked], [one.target for one in asked]
        )
        for i in oldest:
            self._asked[i] = len(self.requests)
        slipped = [i for i, held in zip(oldest, holds.tolist(), strict=True) if not held]
        if not slipped:
            return
        before = Associations.concat([self.pairs[i] for i in slipped])
        mended = self.editor.mend([self.requests[i] for i in slipped], before)
        last = self.editor.layers[-1]
        self.mended += int((mended.values[last] != before.values[last]).any(1).sum())
        for row, i in enumerate(slipped):
            self.pairs[i] = mended.select([row])


def _write_allowed(
    editor: Editor, batch: Sequence[EditRequest]
) -> list[tuple[Sequence[EditRequest], Associations]]:
    """Write a batch in the parts that the guards allow, as the worker does."""
    try:
        return [(batch, editor.write(batch))]
    except EditError as error:
        _, parts = retry_without([request.id for request in batch], error)
        return [one for rows in parts for one in _write_allowed(editor, [batch[row] for row in rows])]


def _written(editor: Editor, facts: Sequence[BenchFact]) -> Associations:
    """Write the facts that the guards allow and return their pairs."""
    nothing = Associations([], {}, {})
    for layer in editor.layers:
        d_out, d_in = editor.model.weight(layer).shape
        nothing.keys[layer], nothing.values[layer] = torch.empty(0, d_in), torch.empty(0, d_out)
    allowed = _write_allowed(editor, [fact.request for fact in facts])
    return Associations.concat([nothing, *(written for _, written in allowed)])


def _write_to(written: list[Associations], editor: Editor, facts: Sequence[BenchFact]) -> None:
    written.append(_written(editor, facts))


def run_sequence(
    lab: Lab,
    facts: Sequence[BenchFact],
    recipe: Recipe,
    size: int,
    review: int,
    every: int,
    report: Report,
    step: Step,
) -> None:
    """Write facts in batches and measure after each ``every`` facts, on all so far and on the first 100."""
    if report.has(recipe=recipe.name, n=len(facts)):
        step(recipe.name, len(facts), len(facts))
        return
    unit, keeper = forward_unit(lab.model), Keeper(report.folder)
    editor = lab.editor(recipe)
    scorer, sequencer = Scorer(editor), Sequencer(editor, review)
    seconds, done = sequencer.resume(keeper, [fact.request for fact in facts]), 0
    for batch in batches(facts, size):
        before, done = done, done + len(batch)
        if done > sequencer.done:
            seconds += timed(partial(sequencer.write, [fact.request for fact in batch]))
            sequencer.keep(keeper, seconds)
        step(recipe.name, done, len(facts))
        due = done // every > before // every or done == len(facts)
        if due and done == sequencer.done and not report.has(recipe=recipe.name, n=done):
            report.add(
                scorer.score(facts[:done]),
                _norms(editor),
                recipe=recipe.name,
                n=done,
                first_100=fmean(scorer.greedy(facts[: min(100, done)])),
                mended=sequencer.mended,
                refused=sequencer.refused,
                capacity=done / editor.statistics.moments[editor.layers[0]].shape[0],
                units_per_fact=seconds / done / unit,
                seconds_per_fact=seconds / done,
            )
    lab.release(editor)


def run_revisions(
    lab: Lab, facts: Sequence[BenchFact], recipe: Recipe, rounds: int, report: Report, step: Step
) -> None:
    """Revise the same facts in rounds, first forgetting the old value, then by history alone."""
    half, keeper = len(facts) // 2, Keeper(report.folder)
    revised, others = facts[:half], facts[half:]
    told = _told(facts, half, rounds)
    for forgets in (True, False):
        name = recipe.name if forgets else f"{recipe.name}, history only"
        bar = "forget first" if forgets else "history only"
        step(bar, 0, rounds)
        if report.has(recipe=name, round=rounds):
            step(bar, rounds, rounds)
            continue
        editor = lab.editor(recipe)
        scorer = Scorer(editor)
        saved = keeper.restore(name, editor)
        parts = saved.parts if saved else [_written(editor, others)]
        for number in range(saved.about["round"] + 1 if saved else 1, rounds + 1):
            now = [
                replace(fact, request=replace(fact.request, target=target))
                for fact, target in zip(revised, told[number - 1], strict=True)
            ]
            if len(parts) > 1 and forgets:
                editor.forget(parts.pop())
            parts.append(_written(editor, now))
            if not report.has(recipe=name, round=number):
                scores = scorer.score(now)
                report.add(
                    _norms(editor),
                    recipe=name,
                    round=number,
                    n=len(others) + number * half,
                    refused=half - len(parts[-1].ids),
                    greedy=scores.greedy,
                    ps=scores.ps,
                    ns=scores.ns,
                    others=fmean(scorer.greedy(others)),
                    perplexity=scores.perplexity,
                )
            keeper.save(name, editor, parts, round=number)
            step(bar, number, rounds)
        lab.release(editor)


def _told(facts: Sequence[BenchFact], half: int, rounds: int) -> list[list[str]]:
    """Return the objects of the first half in each round, the same in every third round.

    So a later round's norm can be compared with the first one's, and a difference is growth.
    """
    objects = [fact.request.target for fact in facts]
    return [
        [objects[(row + 1 + number % _CYCLE) % len(objects)] for row in range(half)]
        for number in range(rounds)
    ]


def run_retract(
    lab: Lab,
    facts: Sequence[BenchFact],
    recipe: Recipe,
    size: int,
    count: int,
    seed: int | None,
    report: Report,
    step: Step,
) -> None:
    """Write all facts, retract some in random order, then the rest."""
    editor = lab.editor(recipe)
    scorer = Scorer(editor)
    clean = editor.published()
    order = list(range(len(facts)))
    random.Random(seed or 0).shuffle(order)
    gone, kept = order[:count], order[count:]
    retracted, others = [facts[i] for i in gone], [facts[i] for i in kept]
    base, keeper = base_scores(editor, scorer, retracted), Keeper(report.folder)
    saved = keeper.restore(recipe.name, editor)
    parts = saved.parts if saved else []
    for done, batch in enumerate(batches(facts, size)):
        step("write", done * size, len(facts))
        if done >= len(parts):
            parts.append(_written(editor, batch))
            keeper.save(recipe.name, editor, parts)
    step("write", len(facts), len(facts))
    pairs = Associations.concat(parts)
    row_of = {one: row for row, one in enumerate(pairs.ids)}

    def retract(fact: BenchFact) -> None:
        if fact.request.id in row_of:  # no guard refused it
            editor.forget(pairs.select([row_of[fact.request.id]]))

    def row(what: str, about: Sequence[BenchFact]) -> None:
        if not report.has(what=what):
            refused = sum(fact.request.id not in row_of for fact in about)
            report.add(scorer.score(about), _norms(editor), what=what, n=len(about), refused=refused)

    row("all written", facts)
    for done, fact in enumerate(retracted):
        step("retract", done, len(facts))
        retract(fact)
    if not report.has(what=_RETRACTED_BASE):
        report.add(base, what=_RETRACTED_BASE, n=len(gone))
    row("retracted facts, after", retracted)
    row("the others", others)
    for fact in others:
        retract(fact)
    equal = all(torch.equal(tensor, clean[name]) for name, tensor in editor.published().items())
    report.add(what="all retracted: tensors bit-equal to the original", bit_equal=equal, n=len(facts))
    step("retract", len(facts), len(facts))
    lab.release(editor)


def _norms(editor: Editor) -> Mapping[str, Any]:
    return {f"norm_{layer}": total for layer, (_, total) in editor.delta_norms().items()}
