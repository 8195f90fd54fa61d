"""The editor writes facts into one model in memory, forgets them, and checks the weights.

Callers return to a ``snapshot`` when something is refused. A write that raises has put the model back.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import ClassVar, Self

import torch

from workers.editing.guards import require_anchored, require_finite, require_near
from workers.editing.memory import Memory, on_grid
from workers.editing.model import EditableModel
from workers.editing.prompts import EditRequest, chat_prefixes, longer
from workers.editing.recipes import Recipe
from workers.editing.statistics import Statistics
from workers.editing.targets import Finder, Targets, find_keys, find_targets

_LEAST = 1.0  # kᵀA0⁻¹k below which the prior takes more than half of what is written
_CLEAR = 2.0  # kᵀA0⁻¹k above which no better key is looked for
_ANSWER_MARGIN = 4  # tokens decoded beyond the target's, since an answer may be tokenised otherwise


@dataclass(frozen=True)
class Associations:
    """The pairs that n facts own: keys {layer: [n, d_in]} and values {layer: [n, d_out]}, fp32 on the CPU.

    Rounded before they are written, so that exactly what is stored is forgotten. steps {layer: mean steps}.
    """

    ids: list[str]
    keys: dict[int, torch.Tensor]
    values: dict[int, torch.Tensor]
    steps: dict[int, float] = field(default_factory=dict)

    def select(self, rows: Sequence[int]) -> Self:
        """Return the pairs of some facts, by row."""
        index = list(rows)
        return type(self)(
            [self.ids[i] for i in index],
            {layer: keys[index] for layer, keys in self.keys.items()},
            {layer: values[index] for layer, values in self.values.items()},
            self.steps,
        )

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        """Return the pairs of all parts, in order."""
        layers = parts[0].keys if parts else {}
        return cls(
            [one for part in parts for one in part.ids],
            {layer: torch.cat([part.keys[layer] for part in parts]) for layer in layers},
            {layer: torch.cat([part.values[layer] for part in parts]) for layer in layers},
        )


Measure = Callable[[str], AbstractContextManager[object]]
"""A context manager that is entered with a stage's name for as long as the stage takes."""


def unmeasured(_stage: str) -> AbstractContextManager[object]:
    """Record nothing: the default ``Measure``."""
    return nullcontext()


@dataclass(frozen=True)
class Reading:
    """The answer that greedy decoding gives to a prompt, and whether it is the fact's."""

    ok: bool
    answer: str


@dataclass(frozen=True)
class Snapshot:
    """The state of an editor at one moment."""

    memories: Mapping[int, Memory]
    weights: Mapping[int, torch.Tensor]


class Editor:
    """Writes and forgets facts in one model by one recipe."""

    memory: ClassVar[type[Memory]] = Memory

    def __init__(
        self,
        model: EditableModel,
        statistics: Statistics,
        recipe: Recipe,
        measure: Measure = unmeasured,
        find: Finder = find_targets,
    ) -> None:
        self.model, self.statistics, self.recipe = model, statistics, recipe
        self._measure, self._find = measure, find
        self.layers = list(recipe.layers)
        chat = chat_prefixes(model.tokenizer) if recipe.chat else ()
        self.prefixes = (*statistics.prefixes, *chat)
        self._base = {layer: model.stored_weight(layer).detach().clone() for layer in self.layers}
        self._memories = {layer: self._prior_memory(layer) for layer in self.layers}
        self.mark()

    # -- changing the weights -------------------------------------------------------------------------

    def write(self, requests: Sequence[EditRequest]) -> Associations:
        """Write facts and return their pairs, or raise EditError and leave the model as it was."""
        if not requests:
            return Associations([], {}, {})
        with self._undone_on_error():
            return self.write_pairs(requests)

    def forget(self, associations: Associations) -> None:
        """Take stored pairs out, in any order, whatever was written since."""
        self._change(associations, lambda memory: memory.forget)

    def remember(self, associations: Associations) -> None:
        """Put stored pairs back as they were."""
        self._change(associations, lambda memory: memory.write)

    def restore(self, active: Associations) -> None:
        """Make the memories hold exactly ``active``, solved in one shot from W0."""
        for layer, memory in self._memories.items():
            keys = active.keys.get(layer, torch.empty(0))
            memory.rebuild(keys, active.values.get(layer, torch.empty(0)))
            self._publish(layer)
        self.mark()

    def mark(self) -> None:
        """Take the weights as they are as the start from which a batch's change is measured."""
        self._marked = {layer: memory.weight for layer, memory in self._memories.items()}

    def snapshot(self) -> Snapshot:
        """Return the state now."""
        weights = {layer: self.model.stored_weight(layer).detach().clone() for layer in self.layers}
        return Snapshot({layer: memory.copy() for layer, memory in self._memories.items()}, weights)

    def rollback_to(self, snapshot: Snapshot) -> None:
        """Return to a snapshot, bit for bit."""
        self._memories = {layer: memory.copy() for layer, memory in snapshot.memories.items()}
        for layer, weight in snapshot.weights.items():
            self._show_stored(layer, weight)

    # -- reading the weights -----------------------------------------------------------------------

    def guard(self, batch_ceiling: float, total_ceiling: float) -> None:
        """Raise EditError for weights that are not finite or moved too far (``not_finite``, ``norm``)."""
        # finiteness comes first: a comparison with NaN refuses nothing
        for layer, memory in self._memories.items():
            require_finite(layer, memory.weight)
        for layer, (batch, total) in self.delta_norms().items():
            require_near(layer, batch, total, batch_ceiling, total_ceiling)

    def delta_norms(self) -> dict[int, tuple[float, float]]:
        """Return ‖W − W_mark‖/‖W0‖ and ‖W − W0‖/‖W0‖ (Frobenius) of each layer."""
        return {
            layer: (
                float((memory.weight - self._marked[layer]).norm() / memory.base.norm()),
                memory.delta_norm(),
            )
            for layer, memory in self._memories.items()
        }

    def verify(self, requests: Sequence[EditRequest]) -> list[Reading]:
        """Return greedy answers, right if they begin with the target in whole words, case ignored."""
        if not requests:
            return []
        tokenizer = self.model.tokenizer
        longest = max(len(tokenizer(f" {r.target}", add_special_tokens=False)["input_ids"]) for r in requests)
        answers = self.model.greedy([r.prompt for r in requests], longest + _ANSWER_MARGIN)
        return [Reading(_begins_with(a, r.target), a.strip()) for r, a in zip(requests, answers, strict=True)]

    def published(self) -> dict[str, torch.Tensor]:
        """Return the edited tensors by state-dict name, in the model's dtype and layout."""
        return {
            self.model.tensor_name(layer): self.model.stored_weight(layer).detach().clone()
            for layer in self.layers
        }

    def show(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put published tensors into the model and leave the memories as they are."""
        for layer in self.layers:
            self._show_stored(layer, tensors[self.model.tensor_name(layer)])

    @contextmanager
    def base_weights(self) -> Iterator[None]:
        """Show the unedited model for the length of a block."""
        shown = self.published()
        for layer, weight in self._base.items():
            self._show_stored(layer, weight)
        try:
            yield
        finally:
            self.show(shown)

    # -- writing --------------------------------------------------------------------------------------

    def write_pairs(self, requests: Sequence[EditRequest]) -> Associations:
        """Write facts: at each layer in order its own targets, found on the weights so far, then mend.

        BLUE (arXiv 2502.03748) writes each residual in full. An error leaves changes: call ``write``.
        """
        written = Associations([request.id for request in requests], {}, {})
        for layer in self.layers:
            targets = self.targets_at(layer, requests)
            written.steps[layer] = float(targets.steps.float().mean())
            self.write_layer(written, layer, targets.keys, targets.values)
        return self.mend(requests, written)

    def targets_at(self, layer: int, requests: Sequence[EditRequest]) -> Targets:
        """Return the values that make the requests true at a layer, or raise EditError if one is refused."""
        with self._measure(f"targets of layer {layer}"):
            targets = self._find(self.model, requests, layer, self.recipe, self.prefixes)
        limits = self._limits(requests, targets.norms, layer)
        require_anchored([request.id for request in requests], targets.norms.tolist(), limits)
        return targets

    def write_layer(
        self, written: Associations, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        """Write keys [n, d_in] and values [n, d_out] at a layer and note them in ``written``."""
        written.keys[layer], written.values[layer] = keys.float().cpu(), values.float().cpu()
        self._memories[layer].write(written.keys[layer], written.values[layer])
        self._publish(layer)

    # -- mending --------------------------------------------------------------------------------------

    def mend(self, requests: Sequence[EditRequest], written: Associations) -> Associations:
        """Replace the last layer's pair of each fact, new or old, that greedy decoding does not answer.

        The new key is the bare prompt's on the weights as they are. Decoding sees that prompt alone, and
        where it begins with the subject its key lies far from the mean over the prefixed prompts. The prior
        and the other facts keep W k short of v, so the value is set as far beyond the target as it takes to
        reach it. Where the prior resists that key, as an attention sink's, the subject is extended by some
        words. Raises EditError if a value is refused; the model is as it was.
        """
        with self._undone_on_error(), self._measure("verify and mend"):
            return self._mended(requests, written)

    def _mended(self, requests: Sequence[EditRequest], written: Associations) -> Associations:
        layer = self.layers[-1]
        memory = self._memories[layer]
        keys, values = written.keys[layer].clone(), written.values[layer].clone()
        for turn in range(self.recipe.mends):
            failed = [row for row, reading in enumerate(self.verify(requests)) if not reading.ok]
            if not failed:
                break
            with self._measure(f"targets of layer {layer}"):
                wanted = [self._reachable(requests[row], turn) for row in failed]
                targets = self._find(self.model, wanted, layer, self.recipe, ())
            limits = torch.tensor(self._limits(wanted, targets.norms, layer))
            # a value beyond its limit is not written, nor one whose key the prior resists: C saw no such text
            fit = (targets.norms.cpu() <= limits) & (memory.strength(targets.keys).cpu() >= _LEAST)
            rows = [row for row, kept in zip(failed, fit.tolist(), strict=True) if kept]
            if not rows:
                break
            fresh = targets.keys[fit].float().cpu()
            memory.forget(keys[rows], values[rows])
            keys[rows] = fresh
            values[rows] = memory.values_for(fresh, targets.values[fit], _LEAST).float().cpu()
            memory.write(fresh, values[rows])
            self._publish(layer)
        return replace(written, keys={**written.keys, layer: keys}, values={**written.values, layer: values})

    def _reachable(self, request: EditRequest, turn: int) -> EditRequest:
        """Return the request, or one of longer subjects, strongest first, where the prior resists its key."""
        layer = self.layers[-1]
        memory = self._memories[layer]

        def strength(one: EditRequest) -> float:
            key, _ = find_keys(self.model, [one], layer, ())
            return float(memory.strength(key))

        own = strength(request)
        if own >= _CLEAR:
            return request
        others = [(strength(one), one) for one in longer(request)]
        ranked = sorted([(own, request), *others], key=itemgetter(0), reverse=True)
        return ranked[min(turn, len(ranked) - 1)][1]

    # -- the parts that a method may replace ----------------------------------------------------------

    def new_memory(self, weight: torch.Tensor, _moment: torch.Tensor, prior: torch.Tensor) -> Memory:
        """Return the memory of one layer: W [d_out, d_in], C and A0 = λp·C + λn·I [d_in, d_in] in fp64."""
        return self.memory(weight, prior)

    def change_of(self, memory: Memory) -> torch.Tensor:
        """Return the ΔW [d_out, d_in] that a memory publishes, fp64."""
        return memory.weight - memory.base

    # -- inside ---------------------------------------------------------------------------------------

    def _prior_memory(self, layer: int) -> Memory:
        weight = self.model.weight(layer).detach()
        moment = self.statistics.moments[layer].to(weight.device).double()
        identity = torch.eye(len(moment), dtype=torch.float64, device=weight.device)
        prior = self.recipe.lambda_prior * moment + self.recipe.lambda_norm * identity
        return self.new_memory(weight, moment, prior)

    def _change(
        self,
        associations: Associations,
        operation: Callable[[Memory], Callable[[torch.Tensor, torch.Tensor], None]],
    ) -> None:
        with self._undone_on_error():
            for layer, memory in self._memories.items():
                operation(memory)(associations.keys[layer], associations.values[layer])
                self._publish(layer)

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        """Return to the state before the block if it raises anything, an interrupt included."""
        before = self.snapshot()
        try:
            yield
        except BaseException:
            self.rollback_to(before)
            raise

    def _limits(self, requests: Sequence[EditRequest], norms: torch.Tensor, layer: int) -> list[float]:
        """Return the largest norm allowed for each value, a multiple of the clean model's mean norm."""
        # or of its norm at this very token where that is larger: some tokens exceed the mean several times
        limits = [self.recipe.anchor_limit * self.statistics.anchors[layer]] * len(requests)
        beyond = [row for row, norm in enumerate(norms.tolist()) if not norm <= limits[row]]
        if beyond:
            with self.base_weights():
                _, clean = find_keys(self.model, [requests[row] for row in beyond], layer, ())
            for row, norm in zip(beyond, clean.norm(dim=1).tolist(), strict=True):
                limits[row] = max(limits[row], self.recipe.anchor_limit * norm)
        return limits

    def _publish(self, layer: int) -> None:
        memory = self._memories[layer]
        self.model.set_weight(layer, memory.base + on_grid(self.change_of(memory), memory.base))

    @torch.no_grad()
    def _show_stored(self, layer: int, weight: torch.Tensor) -> None:
        self.model.stored_weight(layer).copy_(weight)


def _begins_with(answer: str, target: str) -> bool:
    """Return whether the answer's first words are the target's."""
    words, wanted = answer.strip().casefold(), target.strip().casefold()
    return words.startswith(wanted) and not words[len(wanted) : len(wanted) + 1].isalnum()
