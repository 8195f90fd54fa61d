"""Recipes: presets are settings of one editor, never copies of it."""

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from daemon.core.errors import ConfigError


class Recipe(BaseModel):
    """How facts become weights. Defaults are those of ``encore-blue`` for SmolLM2-135M."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "encore-blue"
    summary: str = "ENCORE's regularised memory at BLUE's boundary layers, the first one's part shared by two"
    layers: tuple[int, ...] = Field((3, 4, 8), description="edited layers, first to last")
    residual: Literal["full", "shared"] = Field("full", description="own target a layer, or one shared out")
    history: bool = Field(True, description="keep previous edits in the normal equations")
    constraint: Literal["ridge", "equality"] = Field(
        "ridge", description="values reached as far as the prior lets them, or exactly (EMMET)"
    )
    lambda_prior: float = Field(500.0, ge=0, description="λp: weight of what the model knows")
    lambda_norm: float = Field(1.0, ge=0, description="λn: Frobenius norm constraint")
    null_space_threshold: float | None = Field(
        None, gt=0, description="AlphaEdit: eigenvalues of C below it are free"
    )
    restraint: float | None = Field(
        None, gt=1, description="PRUNE: base of the logarithm that large singular values of ΔW grow by"
    )
    optimiser: Literal["adam", "normalised"] = Field("normalised", description="how δ goes downhill")
    learning_rate: float = Field(
        0.08, gt=0, description="Adam's step on δ, or the normalised step as a share of ‖h‖"
    )
    steps: int = Field(25, ge=1, description="most steps of the target optimisation")
    first_prompts: int | None = Field(
        3, ge=1, description="prompts looked at until they predict the target, then all; none: all at once"
    )
    early_steps: int | None = Field(
        4,
        ge=1,
        description="the same at layers before the last two, the next finds the rest; none: as there",
    )
    later_steps: int | None = Field(None, ge=1, description="the same behind the first layer; none: as there")
    stop: Literal["mpes", "loss", "never"] = Field(
        "mpes",
        description="end when every target token is most probable, at a loss of 0.05, or with the steps",
    )
    extra_steps: int = Field(2, ge=0, description="steps after every target token is most probable (MPES)")
    clamp: float = Field(0.75, gt=0, description="‖δ‖ at most this share of ‖h‖")
    kl_weight: float = Field(0.0625, ge=0, description="weight of the KL term on «{subject} is a»")
    decay: float = Field(0.5, ge=0, description="weight of ‖δ‖/‖h‖²")
    chat: bool = Field(False, description="the model's chat form among the prefixed prompts")
    mends: int = Field(
        2, ge=0, description="rounds that write what is not yet answered anew, at the last layer"
    )
    anchor_limit: float = Field(
        2.0, gt=0, description="refuse values beyond this multiple of the norm anchor"
    )

    def steps_at(self, layer: int) -> int:
        """Most steps of the target optimisation at an edited layer."""
        if layer in self.layers[:-2] and self.early_steps is not None:
            return self.early_steps
        return self.steps if layer == self.layers[0] or self.later_steps is None else self.later_steps

    def first_prompts_at(self, layer: int) -> int | None:
        """With how many prompts a search begins: at the last of several layers most facts hold already."""
        return None if len(self.layers) > 1 and layer == self.layers[-1] else self.first_prompts

    @property
    def exact(self) -> bool:
        """Whether W is a function of W0 and the facts it holds, so that one can be taken out exactly."""
        return self.history and self.constraint == "ridge" and self.restraint is None

    @property
    def leaves_bare(self) -> bool:
        """Whether a bare prompt may be left to mending: only where what is not answered is mended."""
        return self.mends > 0 and self.exact and self.residual == "full"


_ENCORE_BLUE = Recipe()
_BLUE = (3, 8)  # the boundary layers
_CRITICAL = tuple(range(_BLUE[0], _BLUE[-1] + 1))
# What the published codes share: one residual for all critical layers, Adam, MEMIT's stopping, no mending.
_PUBLISHED: Mapping[str, Any] = MappingProxyType(
    {
        "layers": _CRITICAL,
        "residual": "shared",
        "lambda_prior": 100.0,
        "optimiser": "adam",
        "learning_rate": 0.5,
        "stop": "loss",
        "extra_steps": 0,
        "first_prompts": None,
        "early_steps": None,
        "mends": 0,
    }
)
_BOUNDARY: Mapping[str, Any] = MappingProxyType({"layers": _BLUE, "residual": "full", "learning_rate": 0.1})
_MEMIT: Mapping[str, Any] = MappingProxyType({"history": False, "lambda_norm": 0.0})
_ALPHAEDIT: Mapping[str, Any] = MappingProxyType(
    {"lambda_prior": 0.0, "lambda_norm": 10.0, "null_space_threshold": 2e-2}
)


def _preset(name: str, summary: str, *parts: Mapping[str, Any], **settings: Any) -> Recipe:
    merged: dict[str, Any] = {"name": name, "summary": summary}
    for part in (*parts, settings):
        merged |= part
    return Recipe.model_validate(merged)


PRESETS: Mapping[str, Recipe] = MappingProxyType(
    {
        one.name: one
        for one in (
            _ENCORE_BLUE,
            _preset(
                "encore",
                "ENCORE (arXiv 2502.01636): MPES, norm constraint and previous edits at all critical layers",
                _PUBLISHED,
                stop="mpes",
                extra_steps=1,
            ),
            _preset(
                "memit", "MEMIT (arXiv 2210.07229): each batch against the prior alone", _PUBLISHED, _MEMIT
            ),
            _preset(
                "memit-blue",
                "MEMIT at BLUE's boundary layers (arXiv 2502.03748), own full target at each",
                _PUBLISHED,
                _MEMIT,
                _BOUNDARY,
            ),
            _preset(
                "alphaedit",
                "AlphaEdit (arXiv 2410.02355): keys through the null space of C, previous edits",
                _PUBLISHED,
                _ALPHAEDIT,
                learning_rate=0.1,
            ),
            _preset(
                "alphaedit-blue",
                "AlphaEdit at BLUE's boundary layers (arXiv 2502.03748)",
                _PUBLISHED,
                _ALPHAEDIT,
                _BOUNDARY,
                lambda_norm=1.0,
            ),
            _preset(
                "prune",
                "PRUNE (arXiv 2405.16821): MEMIT, large singular values of the summed ΔW restrained",
                _PUBLISHED,
                _MEMIT,
                restraint=1.2,
            ),
            _preset(
                "emmet",
                "EMMET (arXiv 2403.14236): the batch's values reached exactly, least change under C",
                _PUBLISHED,
                _MEMIT,
                constraint="equality",
            ),
        )
    }
)


def resolve(name: str, overrides: Mapping[str, Any], n_layers: int) -> Recipe:
    """A preset with some settings changed, checked against the model.

    Raises:
        ConfigError: unknown preset or setting, a value out of range, a layer that the model does not have.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]}?" if near else "errata recipes lists them"
        raise ConfigError(f"there is no recipe {name!r}", hint=hint)
    try:
        recipe = Recipe.model_validate(PRESETS[name].model_dump() | dict(overrides))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(f"edit.recipe_overrides.{where}: {problem['msg']}") from error
    if (
        not recipe.layers
        or list(recipe.layers) != sorted(set(recipe.layers))
        or recipe.layers[0] < 0
        or recipe.layers[-1] >= n_layers
    ):
        raise ConfigError(
            f"recipe layers {list(recipe.layers)} do not fit a model of {n_layers} layers",
            hint="set edit.recipe_overrides.layers, ascending",
        )
    return recipe
