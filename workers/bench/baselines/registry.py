"""The recipes by name: settings as their papers or codes have them, and the class that carries them out."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from daemon.core.errors import ConfigError
from workers.editing.recipes import Recipe

if TYPE_CHECKING:
    import torch

    from workers.editing.descent import Descent
    from workers.editing.editor import Editor

_BOUNDARY = (3, 8)  # BLUE's boundary layers, those that correspond to 4 and 8 of Llama-3-8B
_CRITICAL = tuple(range(_BOUNDARY[0], _BOUNDARY[-1] + 1))
_LOSS_FLOOR = 0.05  # nats: MEMIT's code ends the search below it


class Published(Recipe):
    """What the published codes share: one residual for all critical layers, Adam, and no mending."""

    layers: tuple[int, ...] = Field(_CRITICAL, description="edited layers, first to last")
    lambda_prior: float = Field(100.0, ge=0, description="λp: weight of the clean model's second moments C")
    learning_rate: float = Field(0.5, gt=0, description="Adam's step, or a normalised one's share of ‖h‖")
    first_prompts: int | None = Field(None, ge=1, description="prompts used until they predict the target")
    early_steps: int | None = Field(None, ge=1, description="step limit for layers before the last two")
    extra_steps: int = Field(0, ge=0, description="steps after the stopping condition holds")
    mends: int = Field(0, ge=0, description="rounds that write unanswered facts again")
    residual: Literal["full", "shared"] = Field(
        "shared", description="own target at each layer, or one for all"
    )
    optimiser: Literal["adam", "normalised"] = Field("adam", description="how δ is optimised")
    stop: Literal["mpes", "loss", "never"] = Field(
        "loss", description="end at the most probable tokens, at a loss of 0.05 nats, or at `steps`"
    )

    @property
    def own_targets(self) -> bool:
        """Whether each edited layer has targets of its own (BLUE)."""
        return self.residual == "full"

    def descent(self, delta: "torch.Tensor", reach: "torch.Tensor") -> "Descent":
        """Return the optimiser of δ [n, d_out], in place; reach [n] is ‖h‖."""
        if self.optimiser == "normalised":
            return super().descent(delta, reach)
        from workers.bench.baselines.adam import Adam

        return Adam(delta, self.learning_rate)

    def is_reached(self, wrong: "torch.Tensor", losses: "torch.Tensor") -> "torch.Tensor":
        """Return which targets [n] bool meet the stopping condition."""
        if self.stop == "mpes":
            return super().is_reached(wrong, losses)
        return losses < (_LOSS_FLOOR if self.stop == "loss" else float("-inf"))


class Batchwise(Published):
    """Settings of MEMIT and what builds on it: no history, so no fact can be taken out exactly."""

    exact: ClassVar[bool] = False
    lambda_norm: float = Field(0.0, ge=0, description="λn: weight of ‖W − W0‖²")


class PruneRecipe(Batchwise):
    """Settings of PRUNE."""

    restraint: float = Field(
        1.2, gt=1, description="base of the logarithm by which large singular values grow"
    )


class AlphaEditRecipe(Published):
    """Settings of AlphaEdit: the threshold and L2 of its Llama-3-8B."""

    lambda_prior: float = Field(0.0, ge=0, description="λp: weight of the clean model's second moments C")
    lambda_norm: float = Field(10.0, ge=0, description="λ: weight of ‖ΔW P‖²")
    learning_rate: float = Field(0.1, gt=0, description="Adam's step, or a normalised one's share of ‖h‖")
    null_space_threshold: float = Field(
        2e-2, gt=0, description="eigenvalues of C below it span the null space"
    )


@dataclass(frozen=True)
class Method:
    """A recipe and the subclass of ``Editor`` that carries it out, as module:class.

    The class is imported when it is used, so that a list of the recipes needs no torch.
    """

    recipe: Recipe
    editor: str = "workers.editing.editor:Editor"

    def load(self) -> "type[Editor]":
        """Return the editor's class."""
        module, name = self.editor.split(":")
        found: type[Editor] = getattr(import_module(module), name)
        return found


_BLUE: Mapping[str, Any] = MappingProxyType({"layers": _BOUNDARY, "residual": "full", "learning_rate": 0.1})
_ALL = (
    Method(Recipe()),
    Method(
        Published(
            name="encore",
            summary="ENCORE (arXiv 2502.01636): "
            "MPES, norm constraint and previous edits at all critical layers",
            stop="mpes",
            extra_steps=1,
        ),
        "workers.bench.baselines.encore:Encore",
    ),
    Method(
        Batchwise(name="memit", summary="MEMIT (arXiv 2210.07229): each batch against the prior alone"),
        "workers.bench.baselines.memit:Memit",
    ),
    Method(
        Batchwise(
            name="memit-blue",
            summary="MEMIT at BLUE's boundary layers (arXiv 2502.03748), own full target at each",
            **_BLUE,
        ),
        "workers.bench.baselines.memit:Memit",
    ),
    Method(
        AlphaEditRecipe(
            name="alphaedit",
            summary="AlphaEdit (arXiv 2410.02355): keys through the null space of C, previous edits",
        ),
        "workers.bench.baselines.alphaedit:AlphaEdit",
    ),
    Method(
        AlphaEditRecipe(
            name="alphaedit-blue",
            summary="AlphaEdit at BLUE's boundary layers (arXiv 2502.03748)",
            lambda_norm=1.0,
            **_BLUE,
        ),
        "workers.bench.baselines.alphaedit:AlphaEdit",
    ),
    Method(
        PruneRecipe(
            name="prune",
            summary="PRUNE (arXiv 2405.16821): MEMIT, large singular values of the summed ΔW restrained",
        ),
        "workers.bench.baselines.prune:Prune",
    ),
    Method(
        Batchwise(
            name="emmet",
            summary="EMMET (arXiv 2403.14236): the batch's values reached exactly, least change under C",
        ),
        "workers.bench.baselines.emmet:Emmet",
    ),
)
METHODS: Mapping[str, Method] = MappingProxyType({one.recipe.name: one for one in _ALL})


def method(name: str) -> Method:
    """Return the method of a recipe's name.

    Raises:
        ConfigError: there is none.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]}?" if near else "errata recipes lists them"
        raise ConfigError(f"there is no recipe {name!r}", hint=hint)
    return METHODS[name]


def resolve(name: str, overrides: Mapping[str, Any], n_layers: int) -> Recipe:
    """Return a named recipe with some settings changed, checked against the model.

    Raises:
        ConfigError: unknown name or setting, a value out of range, a layer that the model does not have.
    """
    return method(name).recipe.changed(overrides, n_layers)
