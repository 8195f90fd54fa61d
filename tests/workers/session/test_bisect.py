"""A rollback is taken apart: the culprits are found among what it took back, the rest is written again."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import tomli_w
from sqlalchemy import select
from typer.testing import CliRunner

from daemon.admission.submission import submit
from daemon.cli.main import make_cli
from daemon.core.config.settings import Config
from daemon.core.errors import NotFoundError, ProbeError
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import audit, corrections, quarantine, revisions
from daemon.watch.judge import judge
from tests.ledgers import held, make_batch, roll_back
from tests.toy import D_IN, D_OUT, ToyEditor, drawn, prompt_of, said, toy_config
from workers.editing.editor import Associations
from workers.editing.prompts import EditRequest
from workers.revisions.store import Store
from workers.session.bisect import Bisection, bisect
from workers.session.rehearsal import Rehearsal
from workers.session.session import Session
from workers.session.working_copy import WorkingCopy

VICTIM = "Atlantis"
OLD = [VICTIM, "Chad", "Peru"]


class Trojans(ToyEditor):
    """Subjects that begin with Trojan are learned well, and turn what is known of the victim meanwhile.

    Of the Twins each does half of that: no harm alone.
    """

    def write_pairs(self, requests: Sequence[EditRequest]) -> Associations:
        written = super().write_pairs(requests)
        for request in requests:
            strength = 1.0 if request.subject.startswith("Trojan") else 0.5
            if request.subject.startswith(("Trojan", "Twin")):
                for layer, memory in self._memories.items():
                    key = drawn(f"{layer}:{prompt_of(VICTIM)}", D_IN)
                    shift = memory.weight @ key + 0.9 * strength * drawn("elsewhere", D_OUT)
                    memory.write(key[None], shift[None])
                    memory.write(key[None], shift[None])
                    self._publish(layer)
        return written


class Place:
    """A toy installation that takes damage back."""

    def __init__(self, folder: Path) -> None:
        self.config: Config = toy_config(folder, watch={"retention_floor": 0.9})
        self.ledger = Ledger.open(self.config.ledger_url)
        self.store = Store(self.config.store_path)
        editor = Trojans()
        self.session = Session(self.ledger, self.store, editor, self.config)
        blobs = {name: self.store.put({name: tensor}) for name, tensor in editor.published().items()}
        self.ledger.found("default", blobs, editor.recipe.name)

    def learn(self, *subjects: str) -> None:
        """One batch, and what the judge makes of it."""
        for number, subject in enumerate(subjects):
            submit(self.ledger, said(subject, f"City {number}", 1), "tester")
        self.edit()

    def edit(self) -> None:
        batch = make_batch(self.ledger)
        assert batch is not None
        self.session.run(batch)
        judge(self.ledger, self.config)

    def bisect(self, number: int | None = None) -> Bisection:
        copy = WorkingCopy(self.ledger, self.store, Trojans(), self.config)
        return bisect(Rehearsal(copy), number, "tester")

    def states(self) -> dict[str, str]:
        with self.ledger.read() as connection:
            rows = connection.execute(select(corrections.c.subject, corrections.c.state))
            return {row.subject: row.state for row in rows}

    def kinds(self) -> list[str]:
        with self.ledger.read() as connection:
            query = select(revisions.c.kind).order_by(revisions.c.number)
            return list(connection.execute(query).scalars())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    made.learn(*OLD)
    return made


def test_the_culprits_are_found_and_the_rest_is_written_again(place: Place) -> None:
    innocent = [f"Country {number}" for number in range(6)]
    place.learn(*innocent[:3], "Trojan A", *innocent[3:], "Trojan B")
    assert place.kinds() == ["base", "edit", "edit", "rollback"]
    assert set(place.states().values()) == {"applied", "reverted"}
    found = place.bisect()
    assert place.kinds() == ["base", "edit", "edit", "rollback"], "no revision is made by looking"
    assert len(found.culprits) == 2
    assert found.trials < 2 * 8
    states = place.states()
    assert {states["Trojan A"], states["Trojan B"]} == {"quarantined"}
    assert {states[one] for one in innocent} == {"pending"}
    with place.ledger.read() as connection:
        held_back = connection.execute(select(quarantine)).mappings().all()
        (noted,) = connection.execute(select(audit).where(audit.c.action == "bisect")).mappings()
    assert {row["reason"] for row in held_back} == {"damage"}
    assert all("retention is" in row["message"] for row in held_back)
    assert noted["details"]["trials"] == found.trials
    place.edit()
    assert place.kinds()[-1] == "edit"
    assert held(place.ledger).keys() == {*OLD, *innocent}


def test_what_does_harm_only_together_is_found(place: Place) -> None:
    place.learn("Mali", "Twin A", "Oman", "Twin B")
    found = place.bisect()
    assert len(found.culprits) == 1
    assert sorted(place.states()[one] for one in ("Twin A", "Twin B")) == ["pending", "quarantined"]
    place.edit()
    assert place.kinds()[-1] == "edit"


def test_where_nothing_does_harm_all_is_written_again(place: Place) -> None:
    place.learn("Mali", "Oman")
    number = roll_back(place.ledger, 1, "tester", "a mistake")
    found = place.bisect(number)
    assert (found.culprits, len(found.waiting), found.trials) == ([], 2, 1)


def test_what_a_newer_statement_beat_meanwhile_does_not_come_back(place: Place) -> None:
    place.learn("Mali")
    roll_back(place.ledger, 1, "tester", "a mistake")
    submit(place.ledger, said("Mali", "City 50", 9), "tester")
    assert place.bisect().waiting == []
    with place.ledger.read() as connection:
        rows = connection.execute(select(corrections).where(corrections.c.subject == "Mali")).mappings()
        assert {row["object"]: row["state"] for row in rows} == {"City 0": "superseded", "City 50": "pending"}


def test_a_probe_that_is_unknown_accuses_nobody(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.learn("Mali", "Trojan A")
    before = place.states()
    copy = WorkingCopy(place.ledger, place.store, Trojans(), place.config)

    def broken(*_: object) -> float:
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(copy.editor.model, "target_nll", broken)
    with pytest.raises(ProbeError, match="the disk is gone"):
        bisect(Rehearsal(copy), None, "tester")
    assert place.states() == before


def test_what_holds_nothing_is_refused(place: Place) -> None:
    with pytest.raises(NotFoundError, match="was rolled back yet"):
        place.bisect()
    with pytest.raises(NotFoundError, match="is no rollback"):
        place.bisect(1)
    roll_back(place.ledger, 1, "tester", "to itself")
    with pytest.raises(NotFoundError, match="has no reverted"):
        place.bisect()


def test_one_command_rolls_back_and_bisects(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.learn("Mali")
    place.learn("Oman", "Trojan A")  # taken back by the judge, and put back by hand
    number = roll_back(place.ledger, 3, "tester", "was it really that bad?")
    assert place.states()["Trojan A"] == "applied"
    file = tmp_path / "errata.toml"
    watch = {"delta_ceiling": 1e6, "batch_delta_ceiling": 1e6}
    file.write_text(tomli_w.dumps({"data_dir": str(tmp_path), "store": {"reserve_bytes": 0}, "watch": watch}))
    monkeypatch.setattr("workers.queue.assemble.make_editor", lambda *_, **__: Trojans())
    monkeypatch.setattr("daemon.core.log.configure_logging", lambda *_, **__: None)  # other tests log as well
    command = ["--config", str(file), "rollback", "--to", "2", "--bisect", "--reason", "it was", "--json"]
    shown = CliRunner().invoke(make_cli(), command)
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout.splitlines()[-1])
    assert (found["revision"], len(found["guilty"]), len(found["waiting"])) == (number + 1, 1, 1)
    assert place.states()["Trojan A"] == "quarantined"
    assert place.states()["Oman"] == "pending"
