"""Fan-out: the same targets whoever seeks them, and a helper that is lost, late or refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kombu.exceptions import OperationalError

from daemon.core.errors import EditError
from tests.numerics.models import PREFIXES, taught
from tests.tinymodel import TinyHouse
from workers.editing.prompts import EditRequest
from workers.editing.recipes import Recipe
from workers.editing.targets import Targets, find_targets
from workers.queue import fanout
from workers.queue.fanout import FanOut, chunks
from workers.queue.target_worker import TargetWorker

RECIPE = Recipe(layers=(0, 1), steps=3, extra_steps=0)
FACTS = [EditRequest(f.id, f.subject, f.prompt, "w25") for f in (*taught()[:7:2], *taught()[1:7:2])]
"""Two about each subject but one, far apart: chunks put them together, so the order must be restored."""


class Helpers:
    """Stands in for Celery: hands each job to a function at once, and remembers what was sent."""

    def __init__(self, run: Callable[[str], None]) -> None:
        self.run = run
        self.sent: list[tuple[str, Any]] = []

    def send_task(self, name: str, arguments: list[str], **options: Any) -> None:
        self.sent.append((name, arguments))
        assert options["queue"] == "errata.targets.default"
        self.run(arguments[0])


@pytest.fixture
def house(tmp_path: Path) -> TinyHouse:
    edit = {"fan_out": True, "target_chunk": 2, "target_seconds": 0.3}
    place = TinyHouse(tmp_path, edit=edit)
    with torch.no_grad():  # weights that the folder does not have: helpers must be told
        for layer in RECIPE.layers:
            place.model.stored_weight(layer).add_(0.01)
    return place


def seek(house: TinyHouse, run: Callable[[str], None]) -> Targets:
    app: Any = Helpers(run)
    return FanOut(house.config, app)(house.model, FACTS, 0, RECIPE, PREFIXES)


def alone(house: TinyHouse) -> dict[str, list[torch.Tensor]]:
    """What this process finds chunk by chunk, by the fact's id."""
    found = {}
    for part in chunks(FACTS, 2):
        mine = [FACTS[i] for i in part]
        targets = find_targets(house.model, mine, 0, RECIPE, PREFIXES)
        for row, fact in enumerate(mine):
            found[fact.id] = [targets.keys[row], targets.values[row], targets.deltas[row]]
    return found


def assert_same(house: TinyHouse, found: Targets) -> None:
    wanted = alone(house)
    for row, fact in enumerate(FACTS):
        for one, other in zip((found.keys, found.values, found.deltas), wanted[fact.id], strict=True):
            assert torch.equal(one[row], other), fact.id


def test_helpers_find_what_this_process_finds_and_nothing_is_left(house: TinyHouse) -> None:
    assert_same(house, seek(house, TargetWorker(house.config).run))
    assert not (house.config.exchange_path / "default").exists()


def test_the_queue_carries_names_only(house: TinyHouse) -> None:
    helpers: Any = Helpers(TargetWorker(house.config).run)
    FanOut(house.config, helpers)(house.model, FACTS, 0, RECIPE, PREFIXES)
    assert len(helpers.sent) == len(chunks(FACTS, 2)) > 2
    for name, (job,) in helpers.sent:
        assert name == "errata.targets"
        assert len(job) == 64


def test_what_a_lost_helper_leaves_is_done_here(house: TinyHouse) -> None:
    target_worker, jobs = TargetWorker(house.config), iter(range(100))

    def every_other(job: str) -> None:
        if next(jobs) % 2:
            target_worker.run(job)

    assert_same(house, seek(house, every_other))


def test_without_a_queue_everything_is_done_here(house: TinyHouse) -> None:
    def refuse(_job: str) -> None:
        raise OperationalError("no Redis")

    assert_same(house, seek(house, refuse))


def test_a_helper_that_breaks_costs_time_only(house: TinyHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Targets:
        raise RuntimeError("boom")

    monkeypatch.setattr("workers.queue.target_worker.find_targets", broken)
    assert_same(house, seek(house, TargetWorker(house.config).run))


def test_a_fact_that_is_refused_there_is_refused_here(
    house: TinyHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> Targets:
        raise EditError("its prompt does not fit", reason="edit_error")

    monkeypatch.setattr("workers.queue.target_worker.find_targets", refused)
    with pytest.raises(EditError, match="does not fit"):
        seek(house, TargetWorker(house.config).run)
    assert not (house.config.exchange_path / "default").exists()


def test_a_job_whose_batch_is_over_is_passed_over(house: TinyHouse) -> None:
    late: list[str] = []
    seek(house, late.append)
    for job in late:
        TargetWorker(house.config).run(job)
        assert not fanout.done_file(house.config.exchange_path / "default", job).exists()


def test_facts_about_one_subject_stay_together() -> None:
    same = [EditRequest(str(i), "w1", "the w1 is", "w2") for i in range(3)]
    other = [EditRequest(str(i), f"w{i}", f"the w{i} is", "w2") for i in range(5, 9)]
    parts = chunks([*other[:2], *same, *other[2:]], 2)
    assert sorted(row for part in parts for row in part) == list(range(7))
    (held,) = [part for part in parts if 2 in part]
    assert held == [2, 3, 4]
    assert all(len(part) <= 2 for part in parts if part != held)
