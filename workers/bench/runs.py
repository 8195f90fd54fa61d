"""The benches: each takes an editor, writes facts, measures, and adds rows to a report."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from daemon.core.errors import EditError
from workers.bench.facts import BenchFact
from workers.bench.lab import Lab, batches, forward_unit, timed
from workers.bench.report import Report
from workers.bench.scores import Scorer, base_scores
from workers.editing.editor import Associations, Editor
from workers.editing.prompts import EditRequest
from workers.editing.recipes import Recipe

Step = Callable[[str, int, int], None]
"""Called with what is going on, how much is done and how much there is."""


def run_table(
    lab: Lab, facts: Sequence[BenchFact], recipes: Sequence[Recipe], size: int, report: Report, step: Step
) -> None:
    """One row a recipe: all metrics after the last batch, against the base model's."""
    unit = forward_unit(lab.model)
    for number, recipe in enumerate(recipes):
        editor = lab.editor(recipe)
        scorer = Scorer(editor)
        if number == 0:
            report.add(base_scores(editor, scorer, facts), recipe="(base)")
        seconds = 0.0
        for done, batch in enumerate(batches(facts, size)):
            step(recipe.name, done * size, len(facts))
            seconds += timed(partial(editor.write, [fact.request for fact in batch]))
        report.add(
            scorer.score(facts),
            _norms(editor),
            recipe=recipe.name,
            n=len(facts),
            batch=size,
            units_per_fact=seconds / len(facts) / unit,
            seconds_per_fact=seconds / len(facts),
        )
        step(recipe.name, len(facts), len(facts))
        lab.release(editor)


class Sequencer:
    """Lifelong editing: batch after batch into one model, old facts reviewed and mended on the way.

    After each batch as many facts of those that were reviewed longest ago are asked as ``review`` allows;
    what has slipped gets a new value (``Editor.mend``), which takes the place of its old one.
    """

    def __init__(self, editor: Editor, review: int) -> None:
        self.editor, self.review = editor, review
        self.requests: list[EditRequest] = []
        self.pairs: list[Associations] = []
        self.mended = 0
        self.refused = 0
        self._asked: list[int] = []

    def write(self, batch: Sequence[EditRequest]) -> None:
        """Write one batch, then look after the old."""
        known = len(self.requests)
        self._write_in_halves(batch)
        if self.review and self.editor.recipe.exact:
            self._look_after(known)

    def _write_in_halves(self, batch: Sequence[EditRequest]) -> None:
        """As the worker does: what a guard refuses is halved until the guilty fact stands alone."""
        try:
            written = self.editor.write(batch)
        except EditError:
            if len(batch) == 1:
                self.refused += 1
                return
            self._write_in_halves(batch[: len(batch) // 2])
            self._write_in_halves(batch[len(batch) // 2 :])
            return
        self._asked += [len(self.requests)] * len(batch)
        self.requests += batch
        self.pairs += [written.select([row]) for row in range(len(batch))]

    def _look_after(self, known: int) -> None:
        oldest = sorted(range(known), key=lambda i: self._asked[i])[: self.review]
        prompts, targets = (
            zip(*((self.requests[i].prompt, self.requests[i].target) for i in oldest), strict=True)
            if oldest
            else ((), ())
        )
        _, holds = self.editor.model.target_scores(prompts, targets)
        for i in oldest:
            self._asked[i] = len(self.requests)
        slipped = [i for i, held in zip(oldest, holds.tolist(), strict=True) if not held]
        if not slipped:
            return
        self.mended += len(slipped)
        mended = self.editor.mend(
            [self.requests[i] for i in slipped], Associations.concat([self.pairs[i] for i in slipped])
        )
        for row, i in enumerate(slipped):
            self.pairs[i] = mended.select([row])


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
    """Facts in batches, measured at every ``every`` facts on all so far, and on the first 100."""
    unit = forward_unit(lab.model)
    editor = lab.editor(recipe)
    scorer, sequencer = Scorer(editor), Sequencer(editor, review)
    seconds, done = 0.0, 0
    for batch in batches(facts, size):
        before = done
        seconds += timed(partial(sequencer.write, [fact.request for fact in batch]))
        done += len(batch)
        step(recipe.name, done, len(facts))
        if done // every > before // every or done == len(facts):
            first = scorer.greedy(facts[: min(100, done)])
            report.add(
                scorer.score(facts[:done]),
                _norms(editor),
                recipe=recipe.name,
                n=done,
                first_100=sum(first) / len(first),
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
    """The same facts revised again and again: forgetting the old value first, and by history alone."""
    chance = random.Random(len(facts))
    half = len(facts) // 2
    revised, others = facts[:half], facts[half:]
    objects = [fact.request.target for fact in facts]
    for forgets in (True, False):
        editor = lab.editor(recipe)
        scorer = Scorer(editor)
        editor.write([fact.request for fact in others])
        held: Associations | None = None
        for number in range(1, rounds + 1):
            step("forget first" if forgets else "history only", number, rounds)
            now = [
                replace(fact, request=replace(fact.request, target=chance.choice(objects)))
                for fact in revised
            ]
            if held is not None and forgets:
                editor.forget(held)
            held = editor.write([fact.request for fact in now])
            report.add(
                _norms(editor),
                recipe=recipe.name if forgets else f"{recipe.name}, history only",
                round=number,
                greedy=_share(scorer.greedy(now)),
                others=_share(scorer.greedy(others)),
                perplexity=scorer.perplexity(),
            )
        lab.release(editor)


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
    """Write all, retract some in random order, then the rest."""
    editor = lab.editor(recipe)
    scorer = Scorer(editor)
    clean = editor.published()
    order = list(range(len(facts)))
    random.Random(seed or 0).shuffle(order)
    gone, kept = order[:count], order[count:]
    retracted, others = [facts[i] for i in gone], [facts[i] for i in kept]
    base = base_scores(editor, scorer, retracted)
    parts = []
    for done, batch in enumerate(batches(facts, size)):
        step("write", done * size, len(facts))
        parts.append(editor.write([fact.request for fact in batch]))
    pairs = Associations.concat(parts)
    report.add(scorer.score(facts), _norms(editor), what="all written", n=len(facts))
    for done, i in enumerate(gone):
        step("retract", done, len(facts))
        editor.forget(pairs.select([i]))
    report.add(base, what="retracted facts, base model", n=len(gone))
    report.add(scorer.score(retracted), what="retracted facts, after", n=len(gone))
    report.add(scorer.score(others), _norms(editor), what="the others", n=len(kept))
    for i in kept:
        editor.forget(pairs.select([i]))
    equal = all(torch.equal(tensor, clean[name]) for name, tensor in editor.published().items())
    report.add(what="all retracted: tensors bit-equal to the original", bit_equal=equal, n=len(facts))
    step("retract", len(facts), len(facts))
    lab.release(editor)


def _norms(editor: Editor) -> Mapping[str, Any]:
    return {f"norm_{layer}": total for layer, (_, total) in editor.delta_norms().items()}


def _share(answers: Sequence[bool]) -> float:
    return sum(answers) / len(answers)
