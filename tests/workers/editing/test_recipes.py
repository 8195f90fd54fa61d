"""Recipes: presets by name, overrides checked, layers within the model."""

import pytest

from daemon.core.errors import ConfigError, ModelError
from workers.bench.baselines.registry import METHODS, resolve
from workers.editing.architectures import architecture_of
from workers.editing.recipes import Recipe


def test_the_default_edits_the_boundary_layers_of_smollm2() -> None:
    recipe = resolve("encore-blue", {}, 30)
    assert recipe.layers == (3, 4, 8)
    assert recipe.exact


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_preset_bears_its_name(name: str) -> None:
    assert resolve(name, {}, 30).name == name


def test_overrides_change_what_they_name() -> None:
    recipe = resolve("encore-blue", {"layers": [1, 2], "lambda_norm": 5}, 4)
    assert recipe.layers == (1, 2)
    assert recipe.lambda_norm == 5.0
    assert recipe.clamp == Recipe().clamp


def test_the_first_layers_part_is_shared_by_its_neighbour() -> None:
    recipe = resolve("encore-blue", {"later_steps": 7}, 30)
    assert [recipe.steps_at(layer) for layer in recipe.layers] == [4, 7, 7]
    assert [recipe.first_prompts_at(layer) for layer in recipe.layers] == [3, 3, None]
    pair = resolve("encore-blue", {"layers": [3, 8]}, 30)
    assert [pair.steps_at(layer) for layer in pair.layers] == [25, 25]
    alone = resolve("encore-blue", {"layers": [3]}, 30)
    assert (alone.steps_at(3), alone.first_prompts_at(3)) == (25, 3)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="encore-blue"):
        resolve("encore_blue", {}, 30)


@pytest.mark.parametrize(
    "overrides",
    [
        {"lambda_nrom": 1.0},
        {"learning_rate": 0},
        {"steps": "many"},
        {"lambda_prior": -1},
        {"optimiser": "adam"},
        {"residual": "shared"},  # of the published methods only
    ],
)
def test_settings_that_do_not_exist_or_fit_are_refused(overrides: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(overrides))):
        resolve("encore-blue", overrides, 30)


@pytest.mark.parametrize("layers", [[], [8, 3], [3, 3], [3, 30], [-1, 3]])
def test_layers_must_be_there_and_in_order(layers: list[int]) -> None:
    with pytest.raises(ConfigError, match="layers"):
        resolve("encore-blue", {"layers": layers}, 30)


def test_the_published_methods_keep_their_own_settings() -> None:
    recipe = resolve("memit", {"stop": "mpes", "optimiser": "normalised", "residual": "full"}, 30)
    assert recipe.own_targets
    assert resolve("alphaedit", {"null_space_threshold": 0.1}, 30).layers == (3, 4, 5, 6, 7, 8)
    exact = {name for name, one in METHODS.items() if one.recipe.exact}
    assert exact == {"encore-blue", "encore", "alphaedit", "alphaedit-blue"}


def test_an_unknown_family_says_what_to_add() -> None:
    with pytest.raises(ModelError, match="mamba") as refused:
        architecture_of("mamba")
    assert "architectures.py" in refused.value.hint
