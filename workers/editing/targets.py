"""Search the values that make facts true, one δ a fact at its subject's last token.

Loss of a fact (MEMIT, arXiv 2210.07229, section 4.2, with the settings of ENCORE, arXiv 2502.01636): mean NLL
of the target over the bare and the prefixed prompts + kl·KL(clean ‖ edited) after "{subject} is a" +
decay·‖δ‖/‖h‖², with ‖δ‖ kept within clamp·‖h‖. A fact is done by Most-Probable Early Stopping: every target
token is the argmax under every prompt, the bare one included. Then the recipe's extra steps follow.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch.nn import functional

from daemon.core.errors import EditError, OutOfMemoryError
from workers.editing.model import EditableModel
from workers.editing.partial import Packed, reach_of, run_lower, run_upper, stream_with
from workers.editing.prompts import EditRequest, Encoded, encode_fact, pack
from workers.editing.recipes import Recipe

_SAME_KEY = 0.99  # cosine above which the keys of two facts about one subject are one key
_APART = 0.6  # cosine to the mean key of the prefixed prompts below which the bare one's is another key
# Facts searched together and columns of one pass through the upper layers, by device. The CPU is as fast with
# few, an accelerator wants many. Memory grows with both, and both are halved when it runs out.
_FACTS, _FACTS_ELSEWHERE = {"cpu": 64}, 256
_COLUMNS, _COLUMNS_ELSEWHERE = {"cpu": 192}, 1024
_WHOLE = 4  # columns of one pass of whole texts, as a multiple: it runs once and keeps no gradients


@dataclass(frozen=True)
class Targets:
    """Keys and values of n facts in the order of the requests, in the model's ``precise`` dtype.

    keys [n, d_in]: mean over the prompts looked at; values [n, d_out] = W k + δ; deltas [n, d_out];
    stream [n, d_model]: the layer's output at the subject of the first prompt, without δ; norms [n]: with it;
    steps [n] int64 taken; done [n] bool: the stopping condition held.
    """

    keys: torch.Tensor
    values: torch.Tensor
    deltas: torch.Tensor
    stream: torch.Tensor
    norms: torch.Tensor
    steps: torch.Tensor
    done: torch.Tensor


Finder = Callable[[EditableModel, Sequence[EditRequest], int, Recipe, Sequence[str]], Targets]
"""The signature of ``find_targets``, which other processes may help to carry out."""


def find_targets(
    model: EditableModel, requests: Sequence[EditRequest], layer: int, recipe: Recipe, prefixes: Sequence[str]
) -> Targets:
    """Search keys and values of each fact at one layer, on the weights that the model has now.

    Raises EditError if a prompt does not fit or a number is not finite, OutOfMemoryError for one fact.
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
    """Return mean keys [n, d_in] over the prompts and the layer's output [n, d_model] at the bare subject."""
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
        own, packed = run_lower(model, packing, layer, cached=False)
        fact = torch.tensor([text.fact for text in group], device=model.device)
        keys.index_add_(0, fact, own.to(keys.dtype))
        bare = torch.tensor([text.prompt == 0 for text in group], device=model.device)
        stream[fact[bare]] = packed.hidden[packed.first[bare]].to(stream.dtype)
    return keys / (1 + len(prefixes)), stream


@dataclass(frozen=True)
class _Text:
    """One text of a fact: prompt 0 is bare, the last one is "{subject} is a"."""

    encoded: Encoded
    fact: int
    prompt: int


@dataclass(frozen=True)
class _Rows:
    """Texts as the upper layers see them."""

    packed: Packed
    fact: torch.Tensor  # [rows] int64: the fact that the text belongs to
    first: torch.Tensor  # [rows] bool: used from the first step on
    plain: torch.Tensor  # [rows] bool: it is "{subject} is a"
    clean: torch.Tensor  # [plain rows, vocabulary]: log-probabilities after it before any edit

    def rows(self, index: torch.Tensor) -> Self:
        """Return the rows of an ascending index."""
        plain = self.plain[index]
        number = (self.plain.cumsum(0) - 1)[index[plain]]
        return type(self)(
            self.packed.rows(index), self.fact[index], self.first[index], plain, self.clean[number]
        )


class _Search:
    """The search for one chunk of facts, where those with one subject and one key form a unit with one δ.

    Rows go through the upper layers packed, and the gradients of the passes add up. Rows of units that are
    done leave. A unit uses the recipe's first prompts only, until these predict its targets; then it is wide
    and uses all. Where the bare prompt begins with the subject, its tokens may be attention sinks, whose keys
    hardly depend on the subject. No value there fits the other prompts too, so a recipe that mends leaves it
    to mending.
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
        keys, outputs, stream = (
            _placed(part.to(model.precise), prompt, fact)[:-1]
            for part in (keys, packed.values, packed.hidden[packed.first])
        )
        begin = self._apart(keys).long()  # the first prompt that is used of each fact
        everyone = torch.arange(len(requests), device=model.device)
        self.keys = torch.stack(
            [own[start:].mean(0) for own, start in zip(keys.unbind(1), begin, strict=True)]
        )
        self.outputs = outputs[begin, everyone]  # W k at the subject of the first prompt
        self.stream = stream[begin, everyone]  # the layer's output there
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
        reach = reach_of(model, layer, self.stream, self.outputs)
        self.reach = _sums(reach, self.unit, count) / self.members

    def run(self) -> Targets:
        """Take steps until every unit is done or the step limit is reached."""
        recipe, count = self.recipe, len(self.members)
        shape = (count, self.model.weight(self.layer).shape[0])
        delta = torch.zeros(shape, dtype=self.keys.dtype, device=self.keys.device)
        descent = recipe.descent(delta, self.reach)
        ticks = torch.zeros(count, dtype=torch.long, device=delta.device)
        steps, sought = torch.zeros_like(ticks), torch.ones_like(ticks, dtype=torch.bool)
        wide = self.answers[0] == self.answers[1]
        rows = self._visible(sought, wide, plain=False)  # where δ is 0, KL has no gradient
        for number in range(recipe.steps_at(self.layer)):
            gradient, right = self._evaluate(rows, delta, sought, wide)
            ticks += (right & sought & wide).long()
            # a unit that holds takes no step before it has used all its prompts, nor after its extra steps
            moving = sought & ~(ticks > recipe.extra_steps) & (wide | ~right)
            descent.step(gradient, moving)
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
        """Return the rows that units [units] bool use now, a part a pass, "{subject} is a" if ``plain``."""
        rows, facts, all_of = self.rows, sought[self.unit], wide[self.unit]
        seen = facts[rows.fact] & (rows.first | all_of[rows.fact]) & (plain | ~rows.plain)
        index = seen.nonzero()[:, 0]
        return [rows.rows(part) for part in rows.packed.parts(index, self.columns)]

    def _evaluate(
        self, passes: Sequence[_Rows], delta: torch.Tensor, sought: torch.Tensor, wide: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradient of the loss by δ [units, d_out], and which units [units] bool may stop."""
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
        return gradient, self.recipe.is_reached(wrong, losses + decay.detach())

    def _loss(
        self, rows: _Rows, delta: torch.Tensor, wrong: torch.Tensor, count: torch.Tensor
    ) -> torch.Tensor:
        """Return a pass's loss [units] without decay, and add the targets that are no argmax to ``wrong``."""
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
        norms = stream_with(self.model, self.layer, self.stream, self.outputs, deltas).norm(dim=1)
        return Targets(self.keys, values, deltas, self.stream, norms, steps[self.unit], done[self.unit])

    # -- before the first step ------------------------------------------------------------------------

    def _lower(self, texts: Sequence[_Text]) -> tuple[list[_Text], torch.Tensor, Packed]:
        """Return the texts in the order of their rows, their keys [rows, d_in] and the rows."""
        groups = list(_grouped(texts, self.columns * _WHOLE))
        device = self.model.device
        packings = (pack([text.encoded for text in group], device) for group in groups)
        keys, packs = zip(*(run_lower(self.model, one, self.layer) for one in packings), strict=True)
        return [text for group in groups for text in group], torch.cat(keys), Packed.concat(packs)

    def _apart(self, keys: torch.Tensor) -> torch.Tensor:
        """Return which facts [facts] bool have other keys bare than prefixed, keys [prompts, facts, d_in]."""
        if len(keys) == 1 or not self.recipe.leaves_bare:
            return torch.zeros(keys.shape[1], dtype=torch.bool, device=keys.device)
        return functional.cosine_similarity(keys[0], keys[1:].mean(0)) < _APART

    @torch.no_grad()
    def _clean(self, packed: Packed, plain: torch.Tensor) -> torch.Tensor:
        """Return log-probabilities [plain rows, vocabulary] after "{subject} is a" now."""
        clean = []
        for index in packed.parts(plain.nonzero()[:, 0], self.columns):
            rows = packed.rows(index)
            normed = run_upper(self.model, rows, self.layer)[rows.last]
            clean.append(self.model.logits(normed).log_softmax(-1))
        return torch.cat(clean)

    def _tokens(self, count: int, *, all_prompts: bool) -> torch.Tensor:
        """Return the number of target tokens [units] under all prompts, or under those used first."""
        at, _ = self.rows.packed.wanted()
        row = self.rows.packed.row[at]
        seen = (self.rows.first[row] | all_prompts).long()
        return _sums(seen, self.unit[self.rows.fact[row]], count)

    def _units(self) -> torch.Tensor:
        """Return the unit [facts] int64 of each fact."""
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
            number = next(same, len(firsts))
            if number == len(firsts):
                firsts.append(i)
            unit.append(number)
        return torch.tensor(unit, device=self.keys.device)


def _grouped(texts: Sequence[_Text], columns: int) -> Iterator[list[_Text]]:
    """Yield groups of texts with about ``columns`` tokens, those after one prefix side by side."""
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
    """Return rows [rows, width] as [prompts, facts, width]."""
    placed = rows.new_empty(int(prompt.max()) + 1, int(fact.max()) + 1, rows.shape[1])
    placed[prompt, fact] = rows
    return placed


def _sums(terms: torch.Tensor, group: torch.Tensor, count: int) -> torch.Tensor:
    """Return the sums [count] of the terms of each group."""
    return torch.zeros(count, dtype=terms.dtype, device=terms.device).index_add(0, group, terms)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
