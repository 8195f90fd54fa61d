"""Values that make facts true: batched optimisation of one δ a fact at its subject's last token.

Loss a fact (MEMIT, arXiv 2210.07229, eq. 16; ENCORE's settings, arXiv 2502.01636): mean NLL of the target
over the bare and the prefixed prompts + kl·KL(clean ‖ edited) after «{subject} is a» + decay·‖δ‖/‖h‖², δ kept
within clamp·‖h‖. A fact is done by Most-Probable Early Stopping: every target token is the argmax under every
prompt, the bare one included; then come the recipe's extra steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from daemon.core.errors import EditError, OutOfMemoryError
from workers.editing.model import EditableModel, PrefixCache
from workers.editing.prompts import KL_ENDING, EditRequest, Layout, encode, lay_out, require_target
from workers.editing.recipes import Recipe

_CHUNK = 32  # facts optimised together; halved when memory runs out


@dataclass(frozen=True)
class Targets:
    """Keys [n, d_in], values [n, d_out] = W k + δ, δ [n, d_out], fp32; steps [n] taken, done [n] by MPES."""

    keys: torch.Tensor
    values: torch.Tensor
    deltas: torch.Tensor
    steps: torch.Tensor
    done: torch.Tensor


def find_targets(
    model: EditableModel, requests: Sequence[EditRequest], layer: int, recipe: Recipe, prefixes: Sequence[str]
) -> Targets:
    """Keys and values of each fact at one layer, on the weights that the model has now.

    Raises:
        EditError: a prompt does not fit. OutOfMemoryError: one fact alone does not fit into memory.
    """
    parts: list[Targets] = []
    start, size = 0, _CHUNK
    while start < len(requests):
        chunk = requests[start : start + size]
        try:
            parts.append(_Optimisation(model, chunk, layer, recipe, prefixes).run())
        except RuntimeError as error:  # torch raises it for memory on every device
            if not _is_out_of_memory(error):
                raise
            if len(chunk) == 1:
                raise OutOfMemoryError(
                    "one fact does not fit into memory", hint="use a smaller dtype"
                ) from error
            size = max(1, len(chunk) // 2)
            continue
        start += len(chunk)
    return Targets(
        *(torch.cat([getattr(part, name) for part in parts]) for name in Targets.__dataclass_fields__)
    )


class _Optimisation:
    """One chunk of facts; rows of finished facts leave the computation."""

    def __init__(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        layer: int,
        recipe: Recipe,
        prefixes: Sequence[str],
    ) -> None:
        self.model, self.layer, self.recipe = model, layer, recipe
        self.count = len(requests)
        self.prompts = 1 + len(prefixes)
        rows = [
            require_target(encode(model.tokenizer, prefix, request))
            for request in requests
            for prefix in ("", *prefixes)
        ]
        rows += [
            encode(model.tokenizer, "", EditRequest(r.id, r.subject, r.subject + KL_ENDING, ""))
            for r in requests
        ]
        self.layout = lay_out(rows, model.pad, model.device)
        keys, self.hidden, self.cache = model.lower(self.layout, layer)
        grouped = keys[: self.count * self.prompts].float()
        self.keys = grouped.view(self.count, self.prompts, -1).mean(1)
        self.clean_norm = self.hidden[: self.count * self.prompts : self.prompts, 0].float().norm(dim=1)
        self.fact_of = torch.cat(
            [torch.arange(self.count).repeat_interleave(self.prompts), torch.arange(self.count)]
        ).to(model.device)
        self.kl_row = torch.arange(len(rows), device=model.device) >= self.count * self.prompts
        self.kl_column = self.layout.mask.shape[1] - 1 - self.layout.mask.flip(1).int().argmax(1)
        self.clean_kl = self._kl_logits(self._normed(None, slice(None)), slice(None)).log_softmax(-1)

    def run(self) -> Targets:
        """Optimise until every fact is done or the steps are spent."""
        delta = torch.zeros(self.count, self.hidden.shape[2], device=self.model.device, requires_grad=True)
        adam = torch.optim.Adam([delta], lr=self.recipe.learning_rate)
        steps = torch.zeros(self.count, dtype=torch.long, device=self.model.device)
        held = torch.zeros_like(steps)  # steps since MPES holds
        best = torch.zeros_like(delta)
        done = torch.zeros(self.count, dtype=torch.bool, device=self.model.device)
        rows: torch.Tensor | slice = slice(None)
        work = _Rows(self, rows)
        for step in range(self.recipe.steps + 1):
            loss, right = work.evaluate(delta)
            held = torch.where(right, held + 1, held)
            finished = right & (held > self.recipe.extra_steps)
            leaving = (finished & ~done) if step < self.recipe.steps else ~done
            best = torch.where(leaving[:, None], delta.detach(), best)
            done_now = done | finished
            if step == self.recipe.steps or bool(done_now.all()):
                done = done_now
                break
            if bool((finished & ~done).any()):
                work = _Rows(self, ~done_now[self.fact_of])
            done = done_now
            (gradient,) = torch.autograd.grad(loss, [delta])
            delta.grad = gradient
            adam.step()
            steps += (~done).long()
            self._clamp(delta)
        return self._result(best, steps, right | done)

    def _result(self, delta: torch.Tensor, steps: torch.Tensor, done: torch.Tensor) -> Targets:
        if not delta.isfinite().all():
            raise EditError("the target optimisation is not finite", reason="not_finite")
        weight = self.model.weight(self.layer).float()
        values = self.keys @ weight.T + delta
        return Targets(self.keys, values, delta, steps, done)

    @torch.no_grad()
    def _clamp(self, delta: torch.Tensor) -> None:
        limit = self.recipe.clamp * self.clean_norm
        delta.mul_((limit / delta.norm(dim=1).clamp(min=1e-12)).clamp(max=1.0)[:, None])

    @torch.no_grad()
    def _normed(self, delta: torch.Tensor | None, rows: slice) -> torch.Tensor:
        return self.model.upper(self.hidden[rows], self.layout, self.layer, self.cache)

    def _kl_logits(self, normed: torch.Tensor, rows: slice | torch.Tensor) -> torch.Tensor:
        """Logits [facts, vocabulary] after «{subject} is a»."""
        chosen = self.kl_row[rows]
        columns = self.kl_column[rows][chosen] - self.layout.anchor
        picked = normed[chosen]
        return self.model.logits(picked[torch.arange(len(picked), device=picked.device), columns])


class _Rows:
    """The rows of facts that are not finished, ready for one evaluation after another."""

    def __init__(self, whole: _Optimisation, rows: torch.Tensor | slice) -> None:
        self.whole = whole
        if isinstance(rows, slice):
            index = torch.arange(len(whole.fact_of), device=whole.model.device)
        else:
            index = rows.nonzero()[:, 0]
        layout = whole.layout
        self.rows = index
        self.layout = Layout(
            layout.ids[index],
            layout.mask[index],
            layout.positions[index],
            layout.targets[index],
            layout.anchor,
        )
        self.hidden = whole.hidden[index]
        self.cache: PrefixCache = whole.cache.rows(index)
        self.fact_of = whole.fact_of[index]
        wanted = self.layout.targets[:, layout.anchor :]
        self.at = (wanted != -100).nonzero(as_tuple=True)
        self.wanted = wanted[self.at]
        self.target_fact = self.fact_of[self.at[0]]
        self.active = torch.unique(self.fact_of)

    def evaluate(self, delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed loss of the facts here, and for every fact whether all its target tokens are argmax."""
        whole = self.whole
        moved = self.hidden.clone()
        moved[:, 0] = self.hidden[:, 0] + delta[self.fact_of].to(self.hidden.dtype)
        normed = whole.model.upper(moved, self.layout, whole.layer, self.cache)
        logits = whole.model.logits(normed[self.at])
        nll = functional.cross_entropy(logits, self.wanted, reduction="none")
        wrong = torch.zeros(whole.count, device=nll.device)
        wrong = wrong.index_add(0, self.target_fact, (logits.argmax(-1) != self.wanted).float())
        tokens = torch.zeros_like(wrong).index_add(0, self.target_fact, torch.ones_like(nll))
        loss = torch.zeros_like(wrong).index_add(0, self.target_fact, nll) / tokens.clamp(min=1)
        kl_logits = whole._kl_logits(normed, self.rows).log_softmax(-1)
        clean = whole.clean_kl[self.active]
        kl = functional.kl_div(kl_logits, clean, reduction="none", log_target=True).sum(-1)
        norm = delta[self.active].norm(dim=1) / whole.clean_norm[self.active] ** 2
        total = loss.sum() + whole.recipe.kl_weight * kl.sum() + whole.recipe.decay * norm.sum()
        return total, (wrong == 0) & (tokens > 0)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
