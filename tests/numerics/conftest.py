"""One taught model for all; what a test edits, it edits in a copy of its own."""

import copy

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
    return taught_model(made_once(tmp_path_factory, "taught-model", teach))


@pytest.fixture(scope="session")
def changes(model: EditableModel) -> list[EditRequest]:
    """New objects for six facts, one of them in two words, which layer 0 of so small a model can say."""
    known = taught()
    wanted = [
        EditRequest(fact.id, fact.subject, fact.prompt, known[(i + 6) % len(known)].target)
        for i, fact in enumerate(known)
    ]
    wanted = [new for new, old in zip(wanted, known, strict=True) if new.target != old.target]
    found = find_targets(model, wanted, 0, RECIPE, PREFIXES)
    easy = [
        new
        for new, steps, done in zip(wanted, found.steps, found.done, strict=True)
        if done and 3 < steps < 25
    ]
    subjects: set[str] = set()
    chosen = [one for one in easy if not (one.subject in subjects or subjects.add(one.subject))]
    chosen.sort(key=lambda one: " " not in one.target)
    assert len(chosen) >= 6
    assert " " in chosen[0].target
    return [chosen[0], *chosen[-5:]]


@pytest.fixture(scope="session")
def statistics(model: EditableModel) -> Statistics:
    return compute(model, RECIPE.layers)


@pytest.fixture
def editor(model: EditableModel, statistics: Statistics) -> Editor:
    return Editor(EditableModel(copy.deepcopy(model.lm), model.tokenizer), statistics, RECIPE)
