"""The recipes by name, with the settings of their papers or codes and their editors' classes."""

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
    """Settings that only published methods have."""

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
        """Return the optimiser that changes δ [n, d_out] in place."""
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
    """Settings of MEMIT and its like, which keep no history, so that no fact can be taken out exactly."""

    exact: ClassVar[bool] = False


class PruneRecipe(Batchwise):
    """Settings of PRUNE."""

    restraint: float = Field(
        1.2, gt=1, description="base of the logarithm by which large singular values grow"
    )


class AlphaEditRecipe(Published):
    """Settings of AlphaEdit, by default those of its Llama-3-8B."""

    null_space_threshold: float = Field(
        2e-2, gt=0, description="eigenvalues of C below it span the null space"
    )


@dataclass(frozen=True)
class Method:
    """A recipe and the subclass of ``Editor`` that carries it out, as module:class."""

    recipe: Recipe
    # imported when it is used, so that a list of the recipes needs no torch
    editor: str = "workers.editing.editor:Editor"

    def load(self) -> "type[Editor]":
        """Return the editor's class."""
        module, name = self.editor.split(":")
        found: type[Editor] = getattr(import_module(module), name)
        return found


# What the published codes share: all critical layers, all prompts at once, MEMIT's λ, no mending.
_SHARED: Mapping[str, Any] = MappingProxyType(
    {
        "layers": _CRITICAL, "lambda_prior": 100.0, "learning_rate": 0.5, "first_prompts": None,
        "early_steps": None, "extra_steps": 0, "mends": 0,
    }
)  # fmt: skip
_MEMIT: Mapping[str, Any] = MappingProxyType({"lambda_norm": 0.0})
_ALPHAEDIT: Mapping[str, Any] = MappingProxyType(
    {"lambda_prior": 0.0, "lambda_norm": 10.0, "learning_rate": 0.1}
)
_BLUE: Mapping[str, Any] = MappingProxyType({"layers": _BOUNDARY, "residual": "full", "learning_rate": 0.1})


def _baseline(
    kind: type[Published], editor: str, name: str, summary: str, *parts: Mapping[str, Any], **settings: Any
) -> Method:
    merged = dict(_SHARED)
    for part in (*parts, settings):
        merged |= part
    return Method(kind(name=name, summary=summary, **merged), f"workers.bench.baselines.{editor}")


_ALL = (
    Method(Recipe()),
    _baseline(
        Published, "encore:Encore", "encore",
        "ENCORE (arXiv 2502.01636): MPES, norm constraint and previous edits at all critical layers",
        stop="mpes", extra_steps=1,
    ),
    _baseline(
        Batchwise, "memit:Memit", "memit",
        "MEMIT (arXiv 2210.07229): each batch against the prior alone", _MEMIT,
    ),
    _baseline(
        Batchwise, "memit:Memit", "memit-blue",
        "MEMIT at BLUE's boundary layers (arXiv 2502.03748), own full target at each", _MEMIT, _BLUE,
    ),
    _baseline(
        AlphaEditRecipe, "alphaedit:AlphaEdit", "alphaedit",
        "AlphaEdit (arXiv 2410.02355): keys through the null space of C, previous edits", _ALPHAEDIT,
    ),
    _baseline(
        AlphaEditRecipe, "alphaedit:AlphaEdit", "alphaedit-blue",
        "AlphaEdit at BLUE's boundary layers (arXiv 2502.03748)", _ALPHAEDIT, _BLUE, lambda_norm=1.0,
    ),
    _baseline(
        PruneRecipe, "prune:Prune", "prune",
        "PRUNE (arXiv 2405.16821): MEMIT, large singular values of the summed ΔW restrained", _MEMIT,
    ),
    _baseline(
        Batchwise, "emmet:Emmet", "emmet",
        "EMMET (arXiv 2403.14236): the batch's values reached exactly, least change under C", _MEMIT,
    ),
)  # fmt: skip
METHODS: Mapping[str, Method] = MappingProxyType({one.recipe.name: one for one in _ALL})


def method(name: str) -> Method:
    """Return the method of a recipe's name, or raise ConfigError if there is none."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]}?" if near else "errata recipes lists them"
        raise ConfigError(f"there is no recipe {name!r}", hint=hint)
    return METHODS[name]


def resolve(name: str, overrides: Mapping[str, Any], n_layers: int) -> Recipe:
    """Return a named recipe with settings changed, or raise ConfigError if they do not fit the model."""
    return method(name).recipe.changed(overrides, n_layers)
