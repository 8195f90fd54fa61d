"""The settings of the method by which facts become weights."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from daemon.core.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from workers.editing.descent import Descent


class Recipe(BaseModel):
    """Settings of ``encore-blue``, the production method, with defaults for SmolLM2-135M."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    exact: ClassVar[bool] = True
    """Whether W is a function of W0 and the pairs it holds, so that a fact can be taken out exactly."""

    name: str = "encore-blue"
    summary: str = "ENCORE's regularised memory at BLUE's boundary layers, the first one's part shared by two"
    layers: tuple[int, ...] = Field((3, 4, 8), description="edited layers, first to last")
    lambda_prior: float = Field(500.0, ge=0, description="λp: weight of the clean model's second moments C")
    lambda_norm: float = Field(1.0, ge=0, description="λn: weight of ‖W − W0‖²")
    learning_rate: float = Field(0.08, gt=0, description="length of a step of δ, as a share of ‖h‖")
    steps: int = Field(25, ge=1, description="step limit of the target search at a layer")
    first_prompts: int | None = Field(
        3,
        ge=1,
        description="prompts used until they predict the target, then all of them (null: all at once)",
    )
    early_steps: int | None = Field(
        4, ge=1, description="step limit for layers before the last two (null: `steps`)"
    )
    later_steps: int | None = Field(
        None, ge=1, description="step limit for layers after the first (null: `steps`)"
    )
    extra_steps: int = Field(2, ge=0, description="steps after every target token is most probable (MPES)")
    clamp: float = Field(0.75, gt=0, description="limit of ‖δ‖ as a share of ‖h‖")
    kl_weight: float = Field(0.0625, ge=0, description='weight of the KL term after "{subject} is a"')
    decay: float = Field(0.5, ge=0, description="weight of ‖δ‖/‖h‖²")
    chat: bool = Field(False, description="add the model's chat form to the prefixed prompts")
    mends: int = Field(
        2, ge=0, description="rounds that write unanswered facts again with a new pair at the last layer"
    )
    anchor_limit: float = Field(
        2.0, gt=0, description="refuse values beyond this multiple of the clean model's norm"
    )

    def steps_at(self, layer: int) -> int:
        """Return the step limit of the target search at an edited layer."""
        if layer in self.layers[:-2] and self.early_steps is not None:
            return self.early_steps
        return self.steps if layer == self.layers[0] or self.later_steps is None else self.later_steps

    def first_prompts_at(self, layer: int) -> int | None:
        """Return how many prompts the search at a layer begins with (None: all)."""
        # all at the last of several layers: most facts hold there already
        return None if len(self.layers) > 1 and layer == self.layers[-1] else self.first_prompts

    @property
    def own_targets(self) -> bool:
        """Whether each edited layer has targets of its own (BLUE), so that layers may be left out between."""
        return True

    @property
    def leaves_bare(self) -> bool:
        """Whether the search may leave a bare prompt to mending."""
        return self.mends > 0 and self.exact and self.own_targets

    def descent(self, delta: "torch.Tensor", reach: "torch.Tensor") -> "Descent":
        """Return the optimiser that changes δ [n, d_out] in place. reach [n]: ‖h‖."""
        from workers.editing.descent import Normalised

        return Normalised(delta, self.learning_rate, reach)

    def is_reached(self, wrong: "torch.Tensor", _losses: "torch.Tensor") -> "torch.Tensor":
        """Return which targets [n] bool have no ``wrong`` token [n] int64 (MPES, arXiv 2502.01636)."""
        return wrong == 0

    def changed(self, overrides: Mapping[str, Any], n_layers: int) -> Self:
        """Return the recipe with some settings changed, checked against a model of ``n_layers``.

        Raises ConfigError for an unknown setting, a value out of range, a layer that the model does not have.
        """
        try:
            recipe = self.model_validate(self.model_dump() | dict(overrides))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise ConfigError(
                f"edit.recipe_overrides.{where}: {problem['msg']}",
                hint=f"errata recipes --json prints the settings of {self.name}",
            ) from error
        layers = list(recipe.layers)
        if not layers or layers != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= n_layers:
            raise ConfigError(
                f"recipe layers {layers} do not fit a model of {n_layers} layers",
                hint="set edit.recipe_overrides.layers, ascending",
            )
        return recipe
