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
    summary: str = "ENCORE's regularised memory at BLUE's boundary layers, own full target at each"
    layers: tuple[int, ...] = Field((3, 8), description="edited layers, first to last")
    residual: Literal["full", "shared"] = Field("full", description="own target a layer, or one shared out")
    history: bool = Field(True, description="keep previous edits in the normal equations")
    lambda_prior: float = Field(100.0, ge=0, description="λp: weight of what the model knows")
    lambda_norm: float = Field(1.0, ge=0, description="λn: Frobenius norm constraint")
    null_space_threshold: float | None = Field(
        None, description="AlphaEdit: eigenvalues of C below it are free"
    )
    learning_rate: float = Field(0.5, gt=0, description="Adam's step on δ")
    steps: int = Field(25, ge=1, description="most steps of the target optimisation")
    extra_steps: int = Field(2, ge=0, description="steps after every target token is most probable (MPES)")
    clamp: float = Field(0.75, gt=0, description="‖δ‖ at most this share of ‖h‖")
    kl_weight: float = Field(0.0625, ge=0, description="weight of the KL term on «{subject} is a»")
    decay: float = Field(0.5, ge=0, description="weight of ‖δ‖/‖h‖²")
    mends: int = Field(2, ge=0, description="rounds that add to the value of facts that are not yet answered")
    anchor_limit: float = Field(
        2.0, gt=0, description="refuse values beyond this multiple of the norm anchor"
    )


_ENCORE_BLUE = Recipe()

PRESETS: Mapping[str, Recipe] = MappingProxyType({"encore-blue": _ENCORE_BLUE})


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
