"""One taught model for all tests, of which each edits a copy of its own."""

import copy
from dataclasses import replace

import pytest

from tests.numerics.models import PREFIXES, taught, taught_model, teach
from tests.once import made_once
from workers.bench.baselines.registry import Published
from workers.editing.editor import Editor
from workers.editing.model import EditableModel
from workers.editing.prompts import EditRequest
from workers.editing.statistics import Statistics, compute
from workers.editing.targets import find_targets

RECIPE = Published(  # Adam, but all else as in production
    residual="full",
    stop="mpes",
    layers=(0, 1),
    lambda_prior=0.02,
    lambda_norm=1e-3,
    clamp=20.0,
    decay=0.0,
    optimiser="adam",
    learning_rate=0.1,
    steps=40,
    extra_steps=2,
    anchor_limit=50.0,
)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> EditableModel:
    """A model that is sure of its facts, however its training was rounded, or no model.

    ERRATA_TEST_SEED in the environment, 0 by default, is the seed that it is trained with.
    """
    return taught_model(made_once(tmp_path_factory, "taught-model", teach))


@pytest.fixture(scope="session")
def changes(model: EditableModel) -> list[EditRequest]:
    """New objects for facts of six subjects, the first in two words: layer 0 can say them and does not yet.

    Nearly all of the facts will do. Which are taken depends on the seed, and may on the processor.
    """
    known = taught()
    wanted = [
        replace(old, target=known[(i + 6) % len(known)].target)  # the third next subject's
        for i, old in enumerate(known)
    ]
    found = find_targets(model, wanted, 0, RECIPE, PREFIXES)
    good = [
        new
        for new, old, steps, done in zip(wanted, known, found.steps, found.done, strict=True)
        if new.target != old.target and done and 3 < steps < 25
    ]
    first = next(one for one in good if " " in one.target)
    others = [one for one in good if " " not in one.target and one.subject != first.subject]
    assert len(others) >= 5, "the model takes hardly any edits at layer 0"
    return [first, *others[-5:]]


@pytest.fixture(scope="session")
def statistics(model: EditableModel) -> Statistics:
    """Those of the model, with prefixes that it was taught behind: behind others it is sure of nothing."""
    return replace(compute(model, RECIPE.layers), prefixes=PREFIXES)


@pytest.fixture
def editor(model: EditableModel, statistics: Statistics) -> Editor:
    return Editor(EditableModel(copy.deepcopy(model.lm), model.tokenizer), statistics, RECIPE)
