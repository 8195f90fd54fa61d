"""A correction travels from a feed into the weights and back out: real Redis, Celery worker and SmolLM2."""

import os
import signal
from collections.abc import Callable, Sequence

import pytest
from sqlalchemy import select

from daemon.core.ledger.schema import attempts, leases
from daemon.core.names import writer_lease
from tests.conftest import is_full
from tests.house import NEWS, House
from workers.cli.probe import show_revision

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(900)]


def answers(house: House, at: str | None = None, prompts: Sequence[str] = ()) -> list[str]:
    """The first word that a revision says after each prompt."""
    _, editor = show_revision(house.config, at)
    said = editor.model.greedy(list(prompts or [p for _, p, _ in NEWS]), 4)
    return [text.strip().split()[0].strip(".,") for text in said]


def test_corrections_are_learned_taken_back_and_restored(taught: House) -> None:
    place = taught
    chain, states = place.chain(), place.states()
    place.start()  # again: its school stopped it
    place.say("Burundi", "The capital city of Burundi is called", "Gitega")
    place.wait(place.drained(len(NEWS) + 1), 120)
    assert place.chain()[: len(chain)] == chain, "after a stop everything is where it was"
    assert {key: state for key, state in place.states().items() if key in states} == states
    before, wanted = answers(place, "0"), [answer for _, _, answer in NEWS]
    assert before != wanted
    assert answers(place) == wanted
    head = place.chain()[-1]["number"]
    assert head == len(chain)

    place.errata("rollback", "--to", "0", "--reason", "test")
    assert place.chain()[-1]["tensors"] == place.chain()[0]["tensors"]
    assert answers(place) == before
    assert set(place.states().values()) == {"reverted"}

    place.errata("rollback", "--to", str(head), "--reason", "test")
    assert place.chain()[-1]["tensors"] == place.chain()[head]["tensors"]
    assert set(place.states().values()) == {"applied"}

    place.errata("retract", "Marie Curie", "--reason", "test")
    place.wait(lambda: place.states().get("Marie Curie=None") == "applied")
    assert answers(place) == [wanted[0], before[1], wanted[2]]
    assert place.states()["Marie Curie=Vienna"] == "retracted"
    place.stop()


@pytest.mark.skipif(not is_full(), reason="a minute and a half: part of deploy/test.sh --guarantees")
def test_a_revised_fact_forgets_its_old_value(house: Callable[..., House]) -> None:
    place = house()
    place.start()
    prompt = "The company Boeing has its headquarters in the state of"
    for day, answer in enumerate(["Virginia", "Texas", "Ohio"], start=1):
        place.say("Boeing", prompt, answer, effective_at=f"2026-01-0{day}T00:00:00Z")
        place.wait(place.drained(day), 120)
        assert answers(place, None, [prompt]) == [answer]
    norms = [float(row["norms"]["3"]) for row in place.chain()[1:]]
    assert place.chain()[-1]["active_facts"] == 1
    assert max(norms) < 1.5 * min(norms)  # what is revised does not pile up
    place.stop()


@pytest.mark.skipif(not is_full(), reason="a minute: part of deploy/test.sh --guarantees")
def test_a_killed_worker_loses_nothing_and_repeats_nothing(house: Callable[..., House]) -> None:
    place = house()
    place.start()
    place.say_news()
    place.wait(lambda: holder(place) is not None and started(place) == 1, 120)
    os.kill(int(str(holder(place)).rsplit(":", 1)[1]), signal.SIGKILL)
    place.wait(place.drained(3), 120)
    assert [row["kind"] for row in place.chain()] == ["base", "edit"]
    assert place.chain()[-1]["active_facts"] == 3
    assert started(place) == 2
    assert answers(place) == [answer for _, _, answer in NEWS]
    place.stop()


def started(place: House) -> int:
    """Attempts at the batch that were counted."""
    with place.ledger.read() as connection:
        return len(connection.execute(select(attempts)).all())


def holder(place: House) -> str | None:
    """The name of the worker that edits now, with its process id after the colon."""
    with place.ledger.read() as connection:
        row = (
            connection.execute(select(leases).where(leases.c.name == writer_lease("default")))
            .mappings()
            .first()
        )
    return row["holder"] if row and row["note"] else None


@pytest.mark.skipif(not is_full(), reason="a minute: part of deploy/test.sh --guarantees")
def test_a_flipped_bit_is_never_loaded(taught: House) -> None:
    place = taught
    blob = next(iter(place.chain()[-1]["tensors"].values()))
    file = place.config.store_path / blob[:2] / f"{blob}.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.chmod(0o600)
    file.write_bytes(bytes(data))
    assert "sha256" in place.errata(
        "ask", "The company Boeing has its headquarters in the state of", status=6
    )
    assert "Boeing" in place.errata(
        "ask", "--base", "The company Boeing has its headquarters in the state of"
    )
