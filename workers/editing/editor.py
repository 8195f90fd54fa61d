"""The editor: a model, one memory for each edited layer, and what may be done to them.

Everything happens on this process's copy. Whoever calls takes a ``checkpoint`` first and goes back to it when
something is refused; a write that raises has put the model back already.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Self

import torch

from daemon.core.errors import ConfigError
from workers.editing.guards import require_anchored, require_finite, require_near
from workers.editing.memory import Memory, null_space, on_grid, restrained
from workers.editing.model import EditableModel
from workers.editing.prompts import EditRequest, chat_prefixes, longer
from workers.editing.recipes import Recipe
from workers.editing.statistics import Statistics
from workers.editing.targets import Finder, Targets, find_keys, find_targets

_LEAST = 1.0  # kᵀA0⁻¹k below which the prior takes more than half of what is written
_CLEAR = 2.0  # and above which no better key is looked for
_ANSWER_MARGIN = 4  # tokens beyond the target that verification lets the model say


@dataclass(frozen=True)
class Associations:
    """The pairs that n facts own: keys {layer: [n, d_in]} and values {layer: [n, d_out]}, fp32 on the CPU.

    They are rounded to fp32 before they are written, so what is stored is what is forgotten.
    """

    ids: list[str]
    keys: dict[int, torch.Tensor]
    values: dict[int, torch.Tensor]
    steps: dict[int, float] = field(default_factory=dict)

    def select(self, rows: Sequence[int]) -> Self:
        """Some of the facts."""
        index = list(rows)
        return type(self)(
            [self.ids[i] for i in index],
            {layer: keys[index] for layer, keys in self.keys.items()},
            {layer: values[index] for layer, values in self.values.items()},
            self.steps,
        )

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        """All facts of the parts, in order."""
        layers = parts[0].keys if parts else {}
        return cls(
            [one for part in parts for one in part.ids],
            {layer: torch.cat([part.keys[layer] for part in parts]) for layer in layers},
            {layer: torch.cat([part.values[layer] for part in parts]) for layer in layers},
        )


Measure = Callable[[str], AbstractContextManager[object]]
"""Entered with the name of a stage for as long as the stage takes."""


def unmeasured(_stage: str) -> AbstractContextManager[object]:
    """Nobody wants to know."""
    return nullcontext()


@dataclass(frozen=True)
class Verdict:
    """Whether greedy decoding answers a fact, and what it says."""

    ok: bool
    answer: str


@dataclass(frozen=True)
class Checkpoint:
    """The state of an editor at one moment."""

    memories: Mapping[int, Memory]
    weights: Mapping[int, torch.Tensor]


class Editor:
    """Writes and forgets facts in one model by one recipe."""

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
        self._memories = {layer: self._new_memory(layer) for layer in self.layers}
        self._mark = {layer: memory.weight for layer, memory in self._memories.items()}

    # -- changing the weights -------------------------------------------------------------------------

    def write(self, requests: Sequence[EditRequest]) -> Associations:
        """Write facts; at each edited layer in order, own targets are found on the weights so far (BLUE).

        Raises:
            EditError: a prompt, a value or the solution is refused; the model is as it was.
        """
        if not requests:
            return Associations([], {}, {})
        before = self.snapshot()
        try:
            if self.recipe.residual == "shared":
                return self._write_shared(requests)
            return self.mend(requests, self._write_full(requests))
        except BaseException:
            self.rollback_to(before)
            raise

    def forget(self, associations: Associations) -> None:
        """Take stored pairs out, in any order, whatever was written since."""
        self._change(associations, Memory.forget)

    def remember(self, associations: Associations) -> None:
        """Put stored pairs back as they were."""
        self._change(associations, Memory.write)

    def restore(self, active: Associations) -> None:
        """The memories that hold exactly ``active``, solved in one shot from W0."""
        for layer, memory in self._memories.items():
            keys = active.keys.get(layer, torch.empty(0))
            memory.rebuild(keys, active.values.get(layer, torch.empty(0)))
            self._publish(layer)
        self._mark = {layer: memory.weight for layer, memory in self._memories.items()}

    def checkpoint(self) -> Checkpoint:
        """The state now; also the mark against which the change of a batch is measured."""
        self._mark = {layer: memory.weight for layer, memory in self._memories.items()}
        return self.snapshot()

    def snapshot(self) -> Checkpoint:
        """The state now; the mark stays where it is."""
        weights = {layer: self.model.stored_weight(layer).detach().clone() for layer in self.layers}
        return Checkpoint({layer: memory.copy() for layer, memory in self._memories.items()}, weights)

    def rollback_to(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint, bit for bit."""
        self._memories = {layer: memory.copy() for layer, memory in checkpoint.memories.items()}
        for layer, weight in checkpoint.weights.items():
            self._show_stored(layer, weight)

    # -- looking at the weights -----------------------------------------------------------------------

    def guard(self, batch_ceiling: float, total_ceiling: float) -> None:
        """Refuse weights that are not finite or moved too far, in this order: NaN passes every comparison.

        Raises:
            EditError: reason ``not_finite`` or ``norm``.
        """
        for layer, memory in self._memories.items():
            require_finite(layer, memory.weight)
        for layer, (batch, total) in self.delta_norms().items():
            require_near(layer, batch, total, batch_ceiling, total_ceiling)

    def delta_norms(self) -> dict[int, tuple[float, float]]:
        """For each layer ‖W − W_checkpoint‖/‖W0‖ and ‖W − W0‖/‖W0‖ (Frobenius)."""
        return {
            layer: (
                float((memory.weight - self._mark[layer]).norm() / memory.base.norm()),
                memory.delta_norm(),
            )
            for layer, memory in self._memories.items()
        }

    def verify(self, requests: Sequence[EditRequest]) -> list[Verdict]:
        """Greedy decoding of each prompt: does it begin with the target, whole words, case ignored?"""
        if not requests:
            return []
        tokenizer = self.model.tokenizer
        longest = max(len(tokenizer(f" {r.target}", add_special_tokens=False)["input_ids"]) for r in requests)
        answers = self.model.greedy([r.prompt for r in requests], longest + _ANSWER_MARGIN)
        return [Verdict(_begins_with(a, r.target), a.strip()) for r, a in zip(requests, answers, strict=True)]

    def published(self) -> dict[str, torch.Tensor]:
        """The edited tensors as the model has them: state-dict name, model's dtype and layout."""
        return {
            self.model.tensor_name(layer): self.model.stored_weight(layer).detach().clone()
            for layer in self.layers
        }

    def show(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put published tensors into the model; the memories stay."""
        for layer in self.layers:
            self._show_stored(layer, tensors[self.model.tensor_name(layer)])

    @contextmanager
    def base_weights(self) -> Iterator[None]:
        """The unedited model for the length of a block."""
        shown = self.published()
        for layer, weight in self._base.items():
            self._show_stored(layer, weight)
        try:
            yield
        finally:
            self.show(shown)

    # -- writing --------------------------------------------------------------------------------------

    def _write_full(self, requests: Sequence[EditRequest]) -> Associations:
        """BLUE (arXiv 2502.03748): each layer's own target, its residual written in full."""
        written = Associations([request.id for request in requests], {}, {})
        for layer in self.layers:
            found = self._targets(requests, layer)
            written.steps[layer] = float(found.steps.float().mean())
            self._write_layer(written, layer, found.keys, found.values)
        return written

    def _write_shared(self, requests: Sequence[EditRequest]) -> Associations:
        """MEMIT (arXiv 2210.07229, eq. 20): one target at the last layer, r/(layers left) at each."""
        last, prefixes = self.layers[-1], self.prefixes
        if self.model.post_norm(last) is not None:
            raise ConfigError(
                f"recipe {self.recipe.name} shares one residual out, which a norm behind the projection "
                "does not allow",
                hint="use a recipe with residual = full, such as encore-blue",
            )
        written = Associations([request.id for request in requests], {}, {})
        found = self._targets(requests, last)
        written.steps[last] = float(found.steps.float().mean())
        goal = found.stream + found.deltas
        for left, layer in zip(range(len(self.layers), 0, -1), self.layers, strict=True):
            keys, stream = find_keys(self.model, requests, layer, prefixes)
            if layer != last:
                _, stream = find_keys(self.model, requests, last, prefixes)
            said = keys @ self.model.weight(layer).to(keys.dtype).T
            self._write_layer(written, layer, keys, said + (goal - stream) / left)
        return written

    def _targets(self, requests: Sequence[EditRequest], layer: int) -> Targets:
        with self._measure(f"targets of layer {layer}"):
            found = self._find(self.model, requests, layer, self.recipe, self.prefixes)
        limits = self._limits(requests, found.norms, layer)
        require_anchored([request.id for request in requests], found.norms.tolist(), limits)
        return found

    def _write_layer(
        self, written: Associations, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        written.keys[layer], written.values[layer] = keys.float().cpu(), values.float().cpu()
        self._memories[layer].write(written.keys[layer], written.values[layer])
        self._publish(layer)

    # -- mending --------------------------------------------------------------------------------------

    def mend(self, requests: Sequence[EditRequest], written: Associations) -> Associations:
        """Replace the last layer's pair of each fact, new or old, that greedy decoding does not answer.

        The new key is that of the bare prompt on the weights as they are, for it alone is asked: where the
        subject begins the prompt it lies far from the mean over the prefixed prompts. The prior and the other
        facts keep W k short of v, so the value goes as far beyond the target as it takes to reach it. Where
        that key is one of an attention sink, the fact is edited some words further on.

        Raises:
            EditError: a value is refused; the model is as it was.
        """
        if not self.recipe.exact:
            return written
        before = self.snapshot()
        try:
            with self._measure("verify and mend"):
                return self._mended(requests, written)
        except BaseException:
            self.rollback_to(before)
            raise

    def _mended(self, requests: Sequence[EditRequest], written: Associations) -> Associations:
        layer = self.layers[-1]
        memory = self._memories[layer]
        keys, values = written.keys[layer].clone(), written.values[layer].clone()
        for turn in range(self.recipe.mends):
            failed = [row for row, verdict in enumerate(self.verify(requests)) if not verdict.ok]
            if not failed:
                break
            with self._measure(f"targets of layer {layer}"):
                wanted = [self._reachable(requests[row], turn) for row in failed]
                found = self._find(self.model, wanted, layer, self.recipe, ())
            limits = torch.tensor(self._limits(wanted, found.norms, layer))
            # what lies beyond stays as it is, and so does what is written where C saw no text
            fit = (found.norms.cpu() <= limits) & (memory.strength(found.keys).cpu() >= _LEAST)
            rows = [row for row, kept in zip(failed, fit.tolist(), strict=True) if kept]
            if not rows:
                break
            fresh, goals = found.keys[fit].float().cpu(), found.values[fit]
            memory.forget(keys[rows], values[rows])
            keys[rows] = fresh
            values[rows] = memory.values_for(fresh, goals, _LEAST).float().cpu()
            memory.write(fresh, values[rows])
            self._publish(layer)
        return replace(written, keys={**written.keys, layer: keys}, values={**written.values, layer: values})

    def _reachable(self, request: EditRequest, turn: int) -> EditRequest:
        """The request; where the prior leaves its key little room, one whose subject goes on for some words.

        The key with most room comes first, at the next turn that with the second most.
        """
        layer = self.layers[-1]
        memory = self._memories[layer]

        def room(one: EditRequest) -> float:
            key, _ = find_keys(self.model, [one], layer, ())
            return float(memory.strength(key))

        own = room(request)
        if own >= _CLEAR:
            return request
        others = [(room(one), one) for one in longer(request)]
        ranked = sorted([(own, request), *others], key=itemgetter(0), reverse=True)
        return ranked[min(turn, len(ranked) - 1)][1]

    # -- inside ---------------------------------------------------------------------------------------

    def _new_memory(self, layer: int) -> Memory:
        weight = self.model.weight(layer).detach()
        moment = self.statistics.moments[layer].to(weight.device).double()
        identity = torch.eye(len(moment), dtype=torch.float64, device=weight.device)
        prior = self.recipe.lambda_prior * moment + self.recipe.lambda_norm * identity
        threshold = self.recipe.null_space_threshold
        return Memory(
            weight,
            prior,
            history=self.recipe.history,
            equality=self.recipe.constraint == "equality",
            projector=None if threshold is None else null_space(moment, threshold),
        )

    def _change(
        self, associations: Associations, operation: Callable[[Memory, torch.Tensor, torch.Tensor], None]
    ) -> None:
        before = self.snapshot()
        try:
            for layer, memory in self._memories.items():
                operation(memory, associations.keys[layer], associations.values[layer])
                self._publish(layer)
        except BaseException:
            self.rollback_to(before)
            raise

    def _limits(self, requests: Sequence[EditRequest], norms: torch.Tensor, layer: int) -> list[float]:
        """The largest norm allowed for each value.

        It is a multiple of the anchor, or of the norm that the clean model itself has there, for some tokens
        stand out by several times the mean.
        """
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
        delta = memory.weight - memory.base
        if self.recipe.restraint is not None:
            delta = restrained(delta, memory.base, self.recipe.restraint)
        self.model.set_weight(layer, memory.base + on_grid(delta, memory.base))

    @torch.no_grad()
    def _show_stored(self, layer: int, weight: torch.Tensor) -> None:
        self.model.stored_weight(layer).copy_(weight)


def _begins_with(answer: str, target: str) -> bool:
    """Whether the answer's first words are the target's."""
    said, wanted = answer.strip().casefold(), target.strip().casefold()
    return said.startswith(wanted) and not said[len(wanted) : len(wanted) + 1].isalnum()
