"""Values that make facts true: batched optimisation of one δ a fact at its subject's last token.

Loss of a fact (MEMIT, arXiv 2210.07229, section 4.2, with the settings of ENCORE, arXiv 2502.01636): mean NLL
of the target over the bare and the prefixed prompts + kl·KL(clean ‖ edited) after «{subject} is a» +
decay·‖δ‖/‖h‖², with ‖δ‖ kept within clamp·‖h‖. A fact is done by Most-Probable Early Stopping: every target
token is the argmax under every prompt, the bare one included; then come the recipe's extra steps. Recipes of
the older methods stop where MEMIT does, at a loss of 0.05, or not before the steps are spent.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Self

import torch
from torch.nn import functional

from daemon.core.errors import EditError, OutOfMemoryError
from workers.editing.model import EditableModel
from workers.editing.optimiser import Adam, Normalised
from workers.editing.partial import Lower, reach_of, run_lower, run_upper, stream_with
from workers.editing.prompts import EditRequest, Encoded, Layout, encode_fact, lay_out
from workers.editing.recipes import Recipe

_LOSS_FLOOR = 0.05  # nats: where MEMIT stops
_SAME_KEY = 0.99  # cosine above which the keys of two facts about one subject are one key
_APART = 0.6  # cosine to the mean key of the prefixed prompts below which the bare one's is another key
_FACTS = {"cpu": 64}  # facts sought together, and tokens of one pass through the upper layers,
_TOKENS = {"cpu": 768}  # by kind of device: memory follows both, and both are halved when it runs out
_FACTS_ELSEWHERE, _TOKENS_ELSEWHERE = 256, 16_384
_WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256)  # rows of one class are padded to one width


@dataclass(frozen=True)
class Targets:
    """One row a fact, in the order of the requests, ``precise`` dtype of the model.

    keys [n, d_in]: mean over the prompts looked at; values [n, d_out] = W k + δ; deltas [n, d_out];
    stream [n, d_model]: the layer's output at the subject of the first prompt, without δ; norms [n]: with it;
    steps [n] int64 taken; done [n] bool: the recipe's condition held.
    """

    keys: torch.Tensor
    values: torch.Tensor
    deltas: torch.Tensor
    stream: torch.Tensor
    norms: torch.Tensor
    steps: torch.Tensor
    done: torch.Tensor


Finder = Callable[[EditableModel, Sequence[EditRequest], int, Recipe, Sequence[str]], Targets]
"""``find_targets``, or what does the same with the help of others."""


def find_targets(
    model: EditableModel, requests: Sequence[EditRequest], layer: int, recipe: Recipe, prefixes: Sequence[str]
) -> Targets:
    """Keys and values of each fact at one layer, on the weights that the model has now.

    Raises:
        EditError: a prompt does not fit, or a number is not finite.
        OutOfMemoryError: one fact alone does not fit into memory.
    """
    kind = model.device.type
    facts, tokens = _FACTS.get(kind, _FACTS_ELSEWHERE), _TOKENS.get(kind, _TOKENS_ELSEWHERE)
    parts: list[Targets] = []
    start = 0
    while start < len(requests):
        chunk = requests[start : start + facts]
        try:
            parts.append(_Search(model, chunk, layer, recipe, prefixes, tokens).run())
        except RuntimeError as error:  # torch raises it for memory on every device
            if not _is_out_of_memory(error):
                raise
            if len(chunk) == 1:
                raise OutOfMemoryError(
                    "one fact does not fit into memory", hint="use a smaller dtype"
                ) from error
            facts, tokens = max(1, len(chunk) // 2), max(1, tokens // 2)
            continue
        start += len(chunk)
    names = Targets.__dataclass_fields__
    return Targets(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


@torch.no_grad()
def find_keys(
    model: EditableModel, requests: Sequence[EditRequest], layer: int, prefixes: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean keys [n, d_in] of the prompts, and the layer's output [n, d_model] at the bare one's subject."""
    d_in = model.weight(layer).shape[1]
    keys = torch.zeros(len(requests), d_in, dtype=model.precise, device=model.device)
    stream = keys.new_zeros(len(requests), model.width)
    rows = [
        _Row(row, i, j)
        for i, request in enumerate(requests)
        for j, row in enumerate(encode_fact(model.tokenizer, prefixes, request, model.max_tokens)[:-1])
    ]
    for group in _grouped(rows, _TOKENS.get(model.device.type, _TOKENS_ELSEWHERE)):
        layout = lay_out([row.encoded for row in group], model.pad, model.device)
        lower = run_lower(model, layout, layer, cached=False)
        fact = torch.tensor([row.fact for row in group], device=model.device)
        keys.index_add_(0, fact, lower.keys.to(keys.dtype))
        bare = torch.tensor([row.prompt == 0 for row in group], device=model.device)
        stream[fact[bare]] = lower.hidden[bare, 0].to(stream.dtype)
    return keys / (1 + len(prefixes)), stream


@dataclass(frozen=True)
class _Row:
    """One text of a fact."""

    encoded: Encoded
    fact: int
    prompt: int = 0  # 0 is the bare one


@dataclass(frozen=True)
class _Rows:
    """Rows that go through the upper layers together; all have a target, or all are «{subject} is a».

    fact [rows]: whose row it is; first [rows] bool: it is looked at from the first step; clean [rows,
    vocabulary]: the log-probabilities after «{subject} is a» before any edit, None where rows have a target.
    """

    layout: Layout
    lower: Lower
    fact: torch.Tensor
    first: torch.Tensor
    clean: torch.Tensor | None

    def of(self, facts: torch.Tensor, wide: torch.Tensor) -> Self | None:
        """Rows of the facts [facts] bool that are still sought, all of those that are ``wide``; or None."""
        index = (facts[self.fact] & (self.first | wide[self.fact])).nonzero()[:, 0]
        if len(index) == 0:
            return None
        if len(index) == len(self.fact):
            return self
        clean = None if self.clean is None else self.clean[index]
        return type(self)(
            self.layout.rows(index), self.lower.rows(index), self.fact[index], self.first[index], clean
        )


@dataclass(frozen=True)
class _Told:
    """Rows with targets before it is known which of them are looked at; fact and prompt [rows] of each."""

    layout: Layout
    lower: Lower
    fact: torch.Tensor
    prompt: torch.Tensor


class _Search:
    """One chunk of facts. Facts with one subject and one key form a unit: they share one δ.

    Rows are grouped by the length of what follows the anchor, so hardly any padding is computed, and the
    groups' gradients add up; rows of units that are done leave. At the first layer a unit looks at the
    recipe's first prompts only, until these predict its targets; then it is wide and looks at all of them.

    Where the subject begins the bare prompt its tokens may be attention sinks, whose keys say next to nothing
    of it. No value there serves the other prompts: a recipe that mends leaves that prompt to mending.
    """

    def __init__(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        layer: int,
        recipe: Recipe,
        prefixes: Sequence[str],
        tokens: int,
    ) -> None:
        self.model, self.layer, self.recipe = model, layer, recipe
        self.requests = requests
        encoded = [encode_fact(model.tokenizer, prefixes, request, model.max_tokens) for request in requests]
        prompts = [_Row(row, i, j) for i, fact in enumerate(encoded) for j, row in enumerate(fact[:-1])]
        plain = [_Row(fact[-1], i) for i, fact in enumerate(encoded)]
        told = [self._told(group) for group in _grouped(prompts, tokens)]
        keys = self._by_prompt(told, [one.lower.keys for one in told])
        first = self._apart(keys).long()  # the prompt that each fact begins with
        everyone = torch.arange(len(requests), device=model.device)
        self.keys = torch.stack(
            [own[start:].mean(0) for own, start in zip(keys.unbind(1), first, strict=True)]
        )
        said = self._by_prompt(told, [one.lower.values for one in told])
        stream = self._by_prompt(told, [one.lower.hidden[:, 0] for one in told])
        self.said = said[first, everyone]  # W k at the subject of the first prompt
        self.stream = stream[first, everyone]  # and the layer's output there
        self.rows = [rows for one in told if (rows := self._looked_at(one, first)) is not None]
        self.unit = self._units()
        count = int(self.unit.max()) + 1
        self.answers = torch.stack(
            [self._tokens(count, all_prompts=False), self._tokens(count, all_prompts=True)]
        )
        self.rows += [self._plain(group) for group in _grouped(plain, tokens)]
        self.members = _sums(torch.ones_like(self.unit), self.unit, count)
        reach = reach_of(model, layer, self.stream, self.said)
        self.reach = _sums(reach, self.unit, count) / self.members

    def run(self) -> Targets:
        """Take steps until every unit is done or the recipe's steps are spent."""
        recipe, count = self.recipe, len(self.members)
        shape = (count, self.model.weight(self.layer).shape[0])
        delta = torch.zeros(shape, dtype=self.keys.dtype, device=self.keys.device)
        optimiser = (
            Adam(delta, recipe.learning_rate)
            if recipe.optimiser == "adam"
            else Normalised(delta, recipe.learning_rate, self.reach)
        )
        ticks = torch.zeros(count, dtype=torch.long, device=delta.device)
        steps, sought = torch.zeros_like(ticks), torch.ones_like(ticks, dtype=torch.bool)
        wide = sought & (self.answers[0] == self.answers[1] if self.layer == recipe.layers[0] else sought)
        rows = self._visible(sought, wide)
        for _ in range(recipe.steps_at(self.layer)):
            gradient, right = self._evaluate(rows, delta, sought, wide)
            ticks += (right & sought & wide).long()
            # without extra steps the step is not taken, nor before a unit has looked at all its prompts
            moving = sought & ~(ticks > recipe.extra_steps) & (wide | ~right)
            optimiser.step(gradient, moving)
            self._clamp(delta)
            steps += moving.long()
            before = sought, wide
            sought, wide = sought & (ticks < max(1, recipe.extra_steps)), wide | right
            if not sought.any():
                break
            if not (torch.equal(before[0], sought) and torch.equal(before[1], wide)):
                rows = self._visible(sought, wide)
        return self._result(delta, steps, ticks > 0)

    def _visible(self, sought: torch.Tensor, wide: torch.Tensor) -> list[_Rows]:
        """The rows that units [units] bool look at now."""
        facts, all_of = sought[self.unit], wide[self.unit]
        return [kept for one in self.rows if (kept := one.of(facts, all_of)) is not None]

    def _evaluate(
        self, rows: Sequence[_Rows], delta: torch.Tensor, sought: torch.Tensor, wide: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradient of the loss by δ [units, d_out], and which units [units] may stop."""
        moved, gradient = delta.clone().requires_grad_(), torch.zeros_like(delta)
        wrong = torch.zeros(len(delta), dtype=torch.long, device=delta.device)
        losses = torch.zeros(len(delta), dtype=delta.dtype, device=delta.device)
        tokens = torch.where(wide, self.answers[1], self.answers[0])
        for one in rows:
            normed = run_upper(self.model, one.layout, self.layer, one.lower, moved[self.unit[one.fact]])
            if one.clean is None:
                each = self._answer_loss(one, normed, wrong, tokens)
            else:
                each = self._drift(one, normed, one.clean)
            losses += each.detach()
            gradient += torch.autograd.grad(each.sum(), moved)[0]
        decay = self.recipe.decay * (moved.norm(dim=1) / self.reach**2) * sought
        gradient += torch.autograd.grad(decay.sum(), moved)[0]
        return gradient, self._right(wrong, losses + decay.detach())

    def _right(self, wrong: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        """Which units [units] meet the recipe's condition to stop."""
        if self.recipe.stop == "mpes":
            return wrong == 0
        return losses < (_LOSS_FLOOR if self.recipe.stop == "loss" else -1.0)

    def _answer_loss(
        self, rows: _Rows, normed: torch.Tensor, wrong: torch.Tensor, count: torch.Tensor
    ) -> torch.Tensor:
        """NLL [units] of the target tokens over their ``count``; those not the argmax count as ``wrong``."""
        at, tokens = rows.layout.wanted()
        logits = self.model.logits(normed[at])
        unit = self.unit[rows.fact[at[0]]]
        wrong.index_add_(0, unit, (logits.detach().argmax(-1) != tokens).long())
        nll = functional.cross_entropy(logits, tokens, reduction="none") / count[unit]
        return _sums(nll, unit, len(self.members))

    def _drift(self, rows: _Rows, normed: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """kl·KL(clean ‖ edited) [units] of the next token after «{subject} is a»."""
        edited = self._after(rows.layout, normed)
        kl = functional.kl_div(edited, clean, reduction="none", log_target=True).sum(-1)
        unit = self.unit[rows.fact]
        return self.recipe.kl_weight * _sums(kl / self.members[unit], unit, len(self.members))

    @torch.no_grad()
    def _clamp(self, delta: torch.Tensor) -> None:
        limit = self.recipe.clamp * self.reach
        delta.mul_((limit / delta.norm(dim=1).clamp(min=1e-12)).clamp(max=1.0)[:, None])

    def _result(self, delta: torch.Tensor, steps: torch.Tensor, done: torch.Tensor) -> Targets:
        deltas = delta[self.unit]
        finite = deltas.isfinite().all(1).tolist()
        if not all(finite):
            guilty = [request.id for request, ok in zip(self.requests, finite, strict=True) if not ok]
            raise EditError("the target is not finite", reason="not_finite", guilty=guilty)
        values = self.keys @ self.model.weight(self.layer).to(self.keys.dtype).T + deltas
        norms = stream_with(self.model, self.layer, self.stream, self.said, deltas).norm(dim=1)
        return Targets(self.keys, values, deltas, self.stream, norms, steps[self.unit], done[self.unit])

    # -- before the first step ------------------------------------------------------------------------

    def _told(self, group: Sequence[_Row]) -> _Told:
        """Rows of prompts with targets."""
        layout = lay_out([row.encoded for row in group], self.model.pad, self.model.device)
        lower = run_lower(self.model, layout, self.layer)
        fact = torch.tensor([row.fact for row in group], device=self.model.device)
        prompt = torch.tensor([row.prompt for row in group], device=self.model.device)
        return _Told(layout, lower, fact, prompt)

    def _by_prompt(self, told: Sequence[_Told], parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """What the rows [rows, width] of each part say, as [prompts, facts, width] in the precise dtype."""
        prompt, fact = (torch.cat([getattr(one, name) for one in told]) for name in ("prompt", "fact"))
        rows = torch.cat(list(parts)).to(self.model.precise)
        placed = rows.new_empty(int(prompt.max()) + 1, len(self.requests), rows.shape[1])
        placed[prompt, fact] = rows
        return placed

    def _apart(self, keys: torch.Tensor) -> torch.Tensor:
        """Which facts [facts] have another key bare than behind prefixes, of keys [prompts, facts, d_in]."""
        if len(keys) == 1 or not self.recipe.leaves_bare:
            return torch.zeros(keys.shape[1], dtype=torch.bool, device=keys.device)
        return functional.cosine_similarity(keys[0], keys[1:].mean(0)) < _APART

    def _looked_at(self, told: _Told, first: torch.Tensor) -> _Rows | None:
        """The rows from each fact's ``first`` prompt [facts] on."""
        number = told.prompt - first[told.fact]
        index = (number >= 0).nonzero()[:, 0]
        if len(index) == 0:
            return None
        early = self.recipe.first_prompts
        at_once = torch.ones_like(index, dtype=torch.bool) if early is None else number[index] < early
        return _Rows(told.layout.rows(index), told.lower.rows(index), told.fact[index], at_once, None)

    @torch.no_grad()
    def _plain(self, group: Sequence[_Row]) -> _Rows:
        """Rows of «{subject} is a» and what the model says after them now."""
        layout = lay_out([row.encoded for row in group], self.model.pad, self.model.device)
        lower = run_lower(self.model, layout, self.layer)
        clean = self._after(layout, run_upper(self.model, layout, self.layer, lower))
        fact = torch.tensor([row.fact for row in group], device=self.model.device)
        return _Rows(layout, lower, fact, torch.ones_like(fact, dtype=torch.bool), clean)

    def _tokens(self, count: int, *, all_prompts: bool) -> torch.Tensor:
        """Target tokens [units] under the prompts that are looked at, or under those looked at first."""
        found = torch.zeros(count, dtype=torch.long, device=self.unit.device)
        for rows in self.rows:
            (row, _), _ = rows.layout.wanted()
            found.index_add_(0, self.unit[rows.fact[row]], (rows.first[row] | all_prompts).long())
        return found

    def _after(self, layout: Layout, normed: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [rows, vocabulary] of the token after each row."""
        row = torch.arange(len(normed), device=normed.device)
        return self.model.logits(normed[row, layout.last()]).log_softmax(-1)

    def _units(self) -> torch.Tensor:
        """The unit [facts] of each fact."""
        directions = functional.normalize(self.keys, dim=1)
        firsts: list[int] = []
        unit: list[int] = []
        for i, request in enumerate(self.requests):
            same = (
                u
                for u, first in enumerate(firsts)
                if self.requests[first].subject == request.subject
                and float(directions[first] @ directions[i]) > _SAME_KEY
            )
            found = next(same, len(firsts))
            if found == len(firsts):
                firsts.append(i)
            unit.append(found)
        return torch.tensor(unit, device=self.keys.device)


def _grouped(rows: Sequence[_Row], tokens: int) -> Iterator[list[_Row]]:
    """Rows of about one length from the anchor on, at most ``tokens`` of them after padding."""
    ordered = sorted(rows, key=lambda row: (_width_class(row.encoded.suffix), row.encoded.anchor))
    for width, alike in groupby(ordered, key=lambda row: _width_class(row.encoded.suffix)):
        group, size = list(alike), max(1, tokens // width)
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _width_class(suffix: int) -> int:
    return next(width for width in _WIDTHS if suffix <= width)


def _sums(terms: torch.Tensor, group: torch.Tensor, count: int) -> torch.Tensor:
    """Sums [count] of the terms of each group."""
    return torch.zeros(count, dtype=terms.dtype, device=terms.device).index_add(0, group, terms)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
