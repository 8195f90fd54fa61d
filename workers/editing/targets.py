"""Values that make facts true: batched optimisation of one δ a fact at its subject's last token.

Loss of a fact (MEMIT, arXiv 2210.07229, section 4.2, with the settings of ENCORE, arXiv 2502.01636): mean NLL
of the target over the bare and the prefixed prompts + kl·KL(clean ‖ edited) after «{subject} is a» +
decay·‖δ‖/‖h‖², with ‖δ‖ kept within clamp·‖h‖. A fact is done by Most-Probable Early Stopping: every target
token is the argmax under every prompt, the bare one included; then come the recipe's extra steps. Recipes of
the older methods stop where MEMIT does, at a loss of 0.05, or not before the steps are spent.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch.nn import functional

from daemon.core.errors import EditError, OutOfMemoryError
from workers.editing.model import EditableModel
from workers.editing.optimiser import Adam, Normalised
from workers.editing.partial import Packed, reach_of, run_lower, run_upper, stream_with
from workers.editing.prompts import EditRequest, Encoded, encode_fact, pack
from workers.editing.recipes import Recipe

_LOSS_FLOOR = 0.05  # nats: where MEMIT stops
_SAME_KEY = 0.99  # cosine above which the keys of two facts about one subject are one key
_APART = 0.6  # cosine to the mean key of the prefixed prompts below which the bare one's is another key
_FACTS = {"cpu": 64}  # facts sought together, and columns of one pass through the upper layers,
_COLUMNS = {"cpu": 192}  # by kind of device: memory follows both, and both are halved when it runs out
_FACTS_ELSEWHERE, _COLUMNS_ELSEWHERE = 256, 1024
_WHOLE = 4  # times as many columns in one pass of whole texts


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
    facts, columns = _FACTS.get(kind, _FACTS_ELSEWHERE), _COLUMNS.get(kind, _COLUMNS_ELSEWHERE)
    parts: list[Targets] = []
    start = 0
    while start < len(requests):
        chunk = requests[start : start + facts]
        try:
            parts.append(_Search(model, chunk, layer, recipe, prefixes, columns).run())
        except RuntimeError as error:  # torch raises it for memory on every device
            if not _is_out_of_memory(error):
                raise
            if len(chunk) == 1:
                raise OutOfMemoryError(
                    "one fact does not fit into memory", hint="use a smaller dtype"
                ) from error
            facts, columns = max(1, len(chunk) // 2), max(1, columns // 2)
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
    texts = [
        _Text(text, i, j)
        for i, request in enumerate(requests)
        for j, text in enumerate(encode_fact(model.tokenizer, prefixes, request, model.max_tokens)[:-1])
    ]
    for group in _grouped(texts, _COLUMNS.get(model.device.type, _COLUMNS_ELSEWHERE) * _WHOLE):
        packing = pack([text.encoded for text in group], model.device)
        found, packed = run_lower(model, packing, layer, cached=False)
        fact = torch.tensor([text.fact for text in group], device=model.device)
        keys.index_add_(0, fact, found.to(keys.dtype))
        bare = torch.tensor([text.prompt == 0 for text in group], device=model.device)
        stream[fact[bare]] = packed.hidden[packed.first[bare]].to(stream.dtype)
    return keys / (1 + len(prefixes)), stream


@dataclass(frozen=True)
class _Text:
    """One text of a fact: 0 is the bare prompt, the last one «{subject} is a»."""

    encoded: Encoded
    fact: int
    prompt: int


@dataclass(frozen=True)
class _Rows:
    """Texts as the upper layers see them.

    fact [rows]: whose row it is; first [rows] bool: it is looked at from the first step; plain [rows] bool:
    it is «{subject} is a»; clean [plain rows, vocabulary]: the log-probabilities after it before any edit.
    """

    packed: Packed
    fact: torch.Tensor
    first: torch.Tensor
    plain: torch.Tensor
    clean: torch.Tensor

    def rows(self, index: torch.Tensor) -> Self:
        """Some of the rows, of an ascending index."""
        plain = self.plain[index]
        number = (self.plain.cumsum(0) - 1)[index[plain]]
        return type(self)(
            self.packed.rows(index), self.fact[index], self.first[index], plain, self.clean[number]
        )


class _Search:
    """One chunk of facts. Facts with one subject and one key form a unit: they share one δ.

    Rows go through the upper layers packed, and the passes' gradients add up; rows of units that are done
    leave. A unit looks at the recipe's first prompts only, until these predict its targets; then it is wide
    and looks at all of them.

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
        columns: int,
    ) -> None:
        self.model, self.layer, self.recipe = model, layer, recipe
        self.requests, self.columns = requests, columns
        encoded = [encode_fact(model.tokenizer, prefixes, request, model.max_tokens) for request in requests]
        texts = [_Text(text, i, j) for i, fact in enumerate(encoded) for j, text in enumerate(fact)]
        texts, keys, packed = self._lower(texts)
        fact = torch.tensor([text.fact for text in texts], device=model.device)
        prompt = torch.tensor([text.prompt for text in texts], device=model.device)
        keys, said, stream = (
            _placed(part.to(model.precise), prompt, fact)[:-1]
            for part in (keys, packed.values, packed.hidden[packed.first])
        )
        begin = self._apart(keys).long()  # the prompt that each fact begins with
        everyone = torch.arange(len(requests), device=model.device)
        self.keys = torch.stack(
            [own[start:].mean(0) for own, start in zip(keys.unbind(1), begin, strict=True)]
        )
        self.said = said[begin, everyone]  # W k at the subject of the first prompt
        self.stream = stream[begin, everyone]  # and the layer's output there
        kept = (prompt >= begin[fact]).nonzero()[:, 0]
        packed, fact, prompt = packed.rows(kept), fact[kept], prompt[kept]
        plain, early = prompt == len(keys), recipe.first_prompts_at(layer) or len(keys)
        first = plain | (prompt - begin[fact] < early)
        self.rows = _Rows(packed, fact, first, plain, self._clean(packed, plain))
        self.unit = self._units()
        count = int(self.unit.max()) + 1
        self.answers = torch.stack(
            [self._tokens(count, all_prompts=False), self._tokens(count, all_prompts=True)]
        )
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
        wide = self.answers[0] == self.answers[1]
        rows = self._visible(sought, wide, plain=False)  # where δ is 0, KL has no gradient
        for number in range(recipe.steps_at(self.layer)):
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
            if number == 0 or not (torch.equal(before[0], sought) and torch.equal(before[1], wide)):
                rows = self._visible(sought, wide)
        return self._result(delta, steps, ticks > 0)

    def _visible(self, sought: torch.Tensor, wide: torch.Tensor, *, plain: bool = True) -> list[_Rows]:
        """The rows that units [units] bool look at now, pass by pass; «{subject} is a» only if ``plain``."""
        rows, facts, all_of = self.rows, sought[self.unit], wide[self.unit]
        seen = facts[rows.fact] & (rows.first | all_of[rows.fact]) & (plain | ~rows.plain)
        index = seen.nonzero()[:, 0]
        return [rows.rows(part) for part in rows.packed.parts(index, self.columns)]

    def _evaluate(
        self, passes: Sequence[_Rows], delta: torch.Tensor, sought: torch.Tensor, wide: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradient of the loss by δ [units, d_out], and which units [units] may stop."""
        moved, gradient = delta.clone().requires_grad_(), torch.zeros_like(delta)
        wrong = torch.zeros(len(delta), dtype=torch.long, device=delta.device)
        losses = torch.zeros(len(delta), dtype=delta.dtype, device=delta.device)
        tokens = torch.where(wide, self.answers[1], self.answers[0])
        for rows in passes:
            each = self._loss(rows, moved, wrong, tokens)
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

    def _loss(
        self, rows: _Rows, delta: torch.Tensor, wrong: torch.Tensor, count: torch.Tensor
    ) -> torch.Tensor:
        """Loss [units] of one pass, decay left out; target tokens that are not the argmax count as ``wrong``.

        NLL of the target tokens over their ``count``, and kl·KL(clean ‖ edited) after «{subject} is a».
        """
        packed = rows.packed
        normed = run_upper(self.model, packed, self.layer, delta[self.unit[rows.fact]])
        at, tokens = packed.wanted()
        both = self.model.logits(normed[torch.cat([at, packed.last[rows.plain]])])
        logits, after = both[: len(at)], both[len(at) :]
        unit = self.unit[rows.fact[packed.row[at]]]
        wrong.index_add_(0, unit, (logits.detach().argmax(-1) != tokens).long())
        nll = functional.cross_entropy(logits, tokens, reduction="none") / count[unit]
        loss = _sums(nll, unit, len(self.members))
        unit = self.unit[rows.fact[rows.plain]]
        kl = functional.kl_div(after.log_softmax(-1), rows.clean, reduction="none", log_target=True).sum(-1)
        return loss + self.recipe.kl_weight * _sums(kl / self.members[unit], unit, len(self.members))

    @torch.no_grad()
    def _clamp(self, delta: torch.Tensor) -> None:
        limit = self.recipe.clamp * self.reach
        delta.mul_((limit / delta.norm(dim=1).clamp(min=1e-12)).clamp(max=1.0)[:, None])

    def _result(self, delta: torch.Tensor, steps: torch.Tensor, done: torch.Tensor) -> Targets:
        deltas = delta[self.unit]
        finite = deltas.isfinite().all(1).tolist()
        if not all(finite):
            culprits = [request.id for request, ok in zip(self.requests, finite, strict=True) if not ok]
            raise EditError("the target is not finite", reason="not_finite", culprits=culprits)
        values = self.keys @ self.model.weight(self.layer).to(self.keys.dtype).T + deltas
        norms = stream_with(self.model, self.layer, self.stream, self.said, deltas).norm(dim=1)
        return Targets(self.keys, values, deltas, self.stream, norms, steps[self.unit], done[self.unit])

    # -- before the first step ------------------------------------------------------------------------

    def _lower(self, texts: Sequence[_Text]) -> tuple[list[_Text], torch.Tensor, Packed]:
        """The texts in the order of their rows, their keys [rows, d_in] and the rows."""
        groups = list(_grouped(texts, self.columns * _WHOLE))
        device = self.model.device
        packings = (pack([text.encoded for text in group], device) for group in groups)
        keys, packs = zip(*(run_lower(self.model, one, self.layer) for one in packings), strict=True)
        return [text for group in groups for text in group], torch.cat(keys), Packed.concat(packs)

    def _apart(self, keys: torch.Tensor) -> torch.Tensor:
        """Which facts [facts] have another key bare than behind prefixes, of keys [prompts, facts, d_in]."""
        if len(keys) == 1 or not self.recipe.leaves_bare:
            return torch.zeros(keys.shape[1], dtype=torch.bool, device=keys.device)
        return functional.cosine_similarity(keys[0], keys[1:].mean(0)) < _APART

    @torch.no_grad()
    def _clean(self, packed: Packed, plain: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [plain rows, vocabulary] of what the model says after «{subject} is a» now."""
        said = []
        for index in packed.parts(plain.nonzero()[:, 0], self.columns):
            rows = packed.rows(index)
            said.append(self.model.logits(run_upper(self.model, rows, self.layer)[rows.last]).log_softmax(-1))
        return torch.cat(said)

    def _tokens(self, count: int, *, all_prompts: bool) -> torch.Tensor:
        """Target tokens [units] under the prompts that are looked at, or under those looked at first."""
        at, _ = self.rows.packed.wanted()
        row = self.rows.packed.row[at]
        seen = (self.rows.first[row] | all_prompts).long()
        found = torch.zeros(count, dtype=torch.long, device=self.unit.device)
        return found.index_add(0, self.unit[self.rows.fact[row]], seen)

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


def _grouped(texts: Sequence[_Text], columns: int) -> Iterator[list[_Text]]:
    """Texts with about ``columns`` tokens together, those behind one prefix side by side."""
    group: list[_Text] = []
    size = 0
    for text in sorted(texts, key=lambda text: (text.prompt, text.fact)):
        size += len(text.encoded.read)
        if group and size > columns:
            yield group
            group, size = [], len(text.encoded.read)
        group.append(text)
    if group:
        yield group


def _placed(rows: torch.Tensor, prompt: torch.Tensor, fact: torch.Tensor) -> torch.Tensor:
    """Rows [rows, width] as [prompts, facts, width]."""
    placed = rows.new_empty(int(prompt.max()) + 1, int(fact.max()) + 1, rows.shape[1])
    placed[prompt, fact] = rows
    return placed


def _sums(terms: torch.Tensor, group: torch.Tensor, count: int) -> torch.Tensor:
    """Sums [count] of the terms of each group."""
    return torch.zeros(count, dtype=terms.dtype, device=terms.device).index_add(0, group, terms)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
