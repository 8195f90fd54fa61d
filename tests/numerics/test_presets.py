"""Each preset against its formula, written out here with nothing of the engine but targets and prompts."""

import copy
from collections.abc import Sequence

import pytest
import torch

from daemon.core.errors import ConfigError
from tests.numerics.conftest import RECIPE
from tests.numerics.models import random_model
from workers.bench.baselines.prune import restrained
from workers.bench.baselines.registry import METHODS
from workers.editing.editor import Editor
from workers.editing.model import EditableModel
from workers.editing.prompts import EditRequest, encode_fact
from workers.editing.recipes import Recipe
from workers.editing.statistics import Statistics
from workers.editing.targets import find_targets

LAYERS = (0, 1, 2)
WIDTH, D_IN = 32, 48
BATCHES = [
    [
        EditRequest("a", "w0 w5", "the w10 of w0 w5 is", "w21"),
        EditRequest("b", "w1", "the w10 of w1 is", "w22"),
    ],
    [EditRequest("c", "w2 w7", "the w11 of w2 w7 is", "w23")],
]
Weights = dict[int, torch.Tensor]


@pytest.fixture(scope="module")
def statistics() -> Statistics:
    """Second moments of any kind, a third of their eigenvalues small."""
    generator = torch.Generator().manual_seed(3)
    moments = {}
    for layer in LAYERS:
        axes = torch.linalg.qr(torch.randn(D_IN, D_IN, generator=generator)).Q
        values = torch.cat([torch.full((16,), 1e-3), torch.linspace(0.5, 3.0, 32)])
        moments[layer] = (axes * values) @ axes.T
    return Statistics(moments, dict.fromkeys(LAYERS, 1e9), ("w30 w31 . ",), 1, 0.0)


def preset(name: str) -> Recipe:
    recipe = METHODS[name].recipe
    layers = LAYERS if len(recipe.layers) > 2 else (0, 2)
    kept = ("clamp", "learning_rate", "steps", "decay", "anchor_limit")
    settings = {key: getattr(RECIPE, key) for key in kept}
    # few steps: rounding has no time to grow
    return recipe.model_copy(
        update={**settings, "layers": layers, "mends": 0, "lambda_prior": 0.5, "steps": 6}
    )


def editor_of(model: EditableModel, statistics: Statistics, recipe: Recipe) -> Editor:
    return METHODS[recipe.name].load()(model, statistics, recipe)


def seen(model: EditableModel, facts: Sequence[EditRequest], layer: int, prefixes: Sequence[str]):
    """Mean keys [d_in, n] and the layer's output at the bare subject [width, n], one text at a time."""
    keys, streams = [], []
    for fact in facts:
        inputs, outputs = [], []
        handles = [
            model.projection(layer).register_forward_hook(
                lambda _m, given, _o, kept=inputs: kept.append(given[0])
            ),
            model.layers[layer].register_forward_hook(
                lambda _m, _g, out, kept=outputs: kept.append(out[0] if isinstance(out, tuple) else out)
            ),
        ]
        rows = encode_fact(model.tokenizer, prefixes, fact, 64)[:-1]
        for row in rows:
            model.lm(input_ids=torch.tensor([row.ids]))
        for handle in handles:
            handle.remove()
        keys.append(torch.stack([one[0, row.anchor] for one, row in zip(inputs, rows, strict=True)]).mean(0))
        streams.append(outputs[0][0, rows[0].anchor])
    return torch.stack(keys).T, torch.stack(streams).T


def step_of(recipe: Recipe, statistics: Statistics, layer: int, K, R, past: torch.Tensor) -> torch.Tensor:
    """ΔW of one batch at one layer, as each paper prints it."""
    C = statistics.moments[layer].double()
    eye = torch.eye(D_IN, dtype=torch.float64)
    name = recipe.name.removesuffix("-blue")
    if name in ("memit", "prune"):
        return R @ K.T @ torch.linalg.inv(recipe.lambda_prior * C + K @ K.T)
    if name == "encore":
        return R @ K.T @ torch.linalg.inv(recipe.lambda_prior * C + past + K @ K.T + recipe.lambda_norm * eye)
    if name == "emmet":
        inverse = torch.linalg.inv(recipe.lambda_prior * C)
        return R @ torch.linalg.inv(K.T @ inverse @ K) @ K.T @ inverse
    values, axes = torch.linalg.eigh(C)
    free = axes[:, values < recipe.null_space_threshold]
    P = free @ free.T
    return R @ K.T @ P @ torch.linalg.inv(past @ P + K @ K.T @ P + recipe.lambda_norm * eye)


def by_hand(model: EditableModel, recipe: Recipe, statistics: Statistics) -> Weights:
    """All batches, the model's weights changed along the way."""
    past = {layer: torch.zeros(D_IN, D_IN, dtype=torch.float64) for layer in recipe.layers}
    last = recipe.layers[-1]
    for batch in BATCHES:
        if not recipe.own_targets:
            found = find_targets(model, batch, last, recipe, statistics.prefixes)
            goal = (found.stream + found.deltas).T
        for place, layer in enumerate(recipe.layers):
            K, _ = seen(model, batch, layer, statistics.prefixes)
            if not recipe.own_targets:
                R = (goal - seen(model, batch, last, statistics.prefixes)[1]) / (len(recipe.layers) - place)
            else:
                R = find_targets(model, batch, layer, recipe, statistics.prefixes).deltas.T
            moved = model.weight(layer) + step_of(recipe, statistics, layer, K, R, past[layer])
            past[layer] = past[layer] + K @ K.T
            model.set_weight(layer, moved)
    return {layer: model.weight(layer).clone() for layer in recipe.layers}


@pytest.mark.parametrize(
    "name", ["encore", "encore-blue", "memit", "memit-blue", "alphaedit", "alphaedit-blue", "emmet"]
)
def test_a_preset_is_its_formula(name: str, statistics: Statistics) -> None:
    recipe, model = preset(name), random_model("llama")
    if name.startswith("alphaedit"):
        recipe = recipe.model_copy(update={"lambda_prior": 0.0})
    wanted = by_hand(EditableModel(copy.deepcopy(model.lm), model.tokenizer), recipe, statistics)
    editor = editor_of(model, statistics, recipe)
    base = {layer: model.weight(layer).clone() for layer in recipe.layers}
    for batch in BATCHES:
        editor.write(batch)
    for layer, weight in wanted.items():
        moved = (weight - base[layer]).norm()
        assert moved > 1e-3
        # pairs are rounded to fp32 before they are written
        assert (model.weight(layer) - weight).norm() <= 1e-3 * moved


def test_prune_restrains_the_sum_of_all_updates_once(statistics: Statistics) -> None:
    """Above σmax(W0) singular values grow by a logarithm, which replaces the update once."""
    model = random_model("llama")
    recipe = preset("prune").model_copy(update={"steps": 40})
    base = {layer: model.weight(layer).clone() for layer in recipe.layers}
    editor = editor_of(model, statistics, recipe)
    for batch in BATCHES:
        editor.write(batch)
    bent = 0
    for layer in recipe.layers:
        full = editor._memories[layer].weight - base[layer]
        left, sigma, right = torch.linalg.svd(full)
        largest = torch.linalg.svdvals(base[layer])[0]
        wanted = [
            s if s <= largest else largest + torch.log(s / largest) / torch.log(torch.tensor(1.2))
            for s in sigma
        ]
        bent += int(sigma[0] > largest)
        expected = left @ torch.diag(torch.stack(wanted)) @ right[: len(sigma)]
        bent_sum = restrained(full, base[layer], 1.2)
        torch.testing.assert_close(bent_sum, expected, rtol=1e-6, atol=1e-8)
        published = model.weight(layer) - base[layer]
        half_a_step = 2.0 ** (base[layer].square().mean().sqrt().log2().floor() - 17)  # of the grid
        assert (published - bent_sum).abs().max() <= half_a_step * (1 + 1e-6)
    assert bent, "no singular value was large enough to be restrained"


def test_no_preset_is_a_copy_of_another() -> None:
    settings = [
        one.recipe.model_dump(exclude={"name", "summary"}) | {"editor": one.editor}
        for one in METHODS.values()
    ]
    assert all(one != other for i, one in enumerate(settings) for other in settings[:i])


def test_a_shared_residual_does_not_fit_a_norm_behind_the_projection(statistics: Statistics) -> None:
    model = random_model("gemma2")
    before = model.weight(0).clone()
    with pytest.raises(ConfigError, match="encore-blue"):
        editor_of(model, statistics, preset("encore")).write(BATCHES[0])
    assert torch.equal(model.weight(0), before)
