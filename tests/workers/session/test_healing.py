"""After an automatic rollback the innocent come back by themselves, and nothing comes back for ever."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import select

from daemon.admission.quarantine import release
from daemon.admission.submission import submit
from daemon.core.config.settings import Config
from daemon.core.fsio import FaultHook, no_fault
from daemon.core.ledger import switches
from daemon.core.ledger.attempts import begin_attempt
from daemon.core.ledger.chain import head
from daemon.core.ledger.healing import begin_healing
from daemon.core.ledger.incidents import open_incident
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import attempts, audit, corrections, incidents, quarantine
from daemon.core.ledger.schema import batches as batch_table
from daemon.core.names import ProbeResult, Reaction, RollbackCause, Subject
from daemon.scheduling.dispatch import make_batches, reconcile, send_open
from daemon.views.facts import find_fact
from daemon.views.why import fact_timeline
from daemon.watch.judge import judge, react
from daemon.watch.rollback import roll_back
from tests.ledgers import FakeClock, held
from tests.toy import said, toy_config
from tests.workers.session.test_bisect import Trojans
from workers.editing.editor import Associations
from workers.editing.prompts import EditRequest
from workers.queue.tasks import deliver
from workers.revisions.store import Store
from workers.session.session import Session

OLD = ["Atlantis", "Chad", "Peru"]
NEW = ["Land A", "Land B", "Land C", "Land D"]


class Interrupted(Trojans):
    """Calls ``happens`` once, in the midst of the first write after it was set."""

    happens: Callable[[], object] | None = None

    def write_pairs(self, requests: Sequence[EditRequest]) -> Associations:
        if self.happens is not None:
            happens, self.happens = self.happens, None
            happens()
        return super().write_pairs(requests)


class Place:
    """A toy installation: daemon and worker in turns, with a queue in between."""

    def __init__(self, folder: Path, fault: FaultHook = no_fault, **watch: Any) -> None:
        self.clock = FakeClock()
        self.config: Config = toy_config(
            folder, watch={"retention_floor": 0.9, **watch}, edit={"batch_size": 8, "lease_seconds": 60.0}
        )
        self.ledger = Ledger.open(self.config.ledger_url, self.clock, fault)
        self.store = Store(self.config.store_path)
        self.editor = Interrupted()
        self.model = "default"
        self.queued: list[str] = []
        self.tried: list[str] = []
        blobs = {name: self.store.put({name: tensor}) for name, tensor in self.editor.published().items()}
        self.ledger.found("default", blobs, self.editor.recipe.name)
        self._session: Session | None = None

    # -- as a queue, and as the holder of a session ------------------------------------------------

    def send(self, _model: str, batch_id: str) -> None:
        self.queued.append(batch_id)

    def depth(self, _model: str) -> int:
        return len(self.queued)

    def survey(self, _model: str) -> None: ...

    def workers(self) -> list[str]:
        return []

    def session(self) -> Session:
        if self._session is None:
            self._session = Session(self.ledger, self.store, self.editor, self.config)
        return self._session

    def forget(self) -> None:
        self._session, self.editor = None, Interrupted()

    def tell(self, _state: str) -> None: ...

    # -- what happens ------------------------------------------------------------------------------

    def say(self, *subjects: str, day: int = 1, **more: Any) -> None:
        for number, subject in enumerate(subjects):
            submit(self.ledger, said(subject, f"City {number}", day, **more), "tester", feed="news")

    def retract(self, subject: str, day: int = 2) -> None:
        submit(self.ledger, said(subject, None, day), "operator")

    def tick(self) -> None:
        """What daemon and worker do until nothing of it is left."""
        for _ in range(20):
            self.clock.advance(2.0)
            judge(self.ledger, self.config)
            make_batches(self.ledger, self.config)
            send_open(self.ledger, "default", self)
            reconcile(self.ledger, self.config, self)
            if not self.queued:
                break
            while self.queued:
                self.tried.append(self.queued[0])
                deliver(self, self.queued.pop(0))  # type: ignore[arg-type]
                judge(self.ledger, self.config)

    def edit(self) -> None:
        """Apply what waits, and judge it."""
        self.take_in()
        judge(self.ledger, self.config)

    def take_in(self) -> None:
        """Apply what waits."""
        make_batches(self.ledger, self.config)
        send_open(self.ledger, "default", self)
        while self.queued:
            deliver(self, self.queued.pop(0))  # type: ignore[arg-type]

    def alert(self) -> Reaction:
        """An alert about something that no probe measures calls for a rollback of head, later."""
        self.clock.advance(1000.0)
        with self.ledger.write() as connection:
            number = head(connection, "default")["number"]
            open_incident(
                connection, self.clock.now(), "default", number, "alert:Complaints", "complaints",
                subject=Subject.REVISION, result=ProbeResult.DEGRADED, since=number - 1,
            )  # fmt: skip
        return react(self.ledger, self.config, "alertmanager", RollbackCause.ALERT)

    def goes_back(self) -> None:
        """An automatic rollback to the first revision."""
        heals = partial(begin_healing, now=self.clock.now(), model="default", size=8)
        roll_back(
            self.ledger, "default", self.config.store_path, to=1, who="an alert", reason="complaints",
            cause=RollbackCause.ALERT,
            in_transaction=lambda connection, number: heals(connection, rollback=number),
        )  # fmt: skip

    # -- what there is -----------------------------------------------------------------------------

    def states(self) -> dict[str, str]:
        with self.ledger.read() as connection:
            rows = connection.execute(select(corrections).order_by(corrections.c.seq)).mappings()
            return {f"{row['subject']}{'' if row['object'] else ' gone'}": row["state"] for row in rows}

    def rows(self, table: Any, *order: Any) -> list[dict[str, Any]]:
        with self.ledger.read() as connection:
            return [dict(row) for row in connection.execute(select(table).order_by(*order)).mappings()]

    def kinds(self) -> list[str]:
        with self.ledger.read() as connection:
            newest = head(connection, "default")["number"]
            return [connection.exec_driver_sql(
                "SELECT kind FROM revisions WHERE number = ?", (number,)
            ).scalar_one() for number in range(newest + 1)]  # fmt: skip

    def left(self) -> int:
        """Batches that are not done."""
        return sum(1 for row in self.rows(batch_table) if row["state"] in ("open", "sent"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    made.say(*OLD)
    made.edit()
    return made


def damage(place: Place, *more: str) -> None:
    """A batch with four good facts, a culprit and an operator's retraction, up to the judge's next look."""
    place.retract("Peru")
    place.say(*NEW, "Trojan", *more, day=2)
    place.take_in()


def test_the_innocent_come_back_the_retraction_holds_and_the_culprit_stays_out(place: Place) -> None:
    damage(place)
    assert place.kinds() == ["base", "edit", "edit"]
    judge(place.ledger, place.config)
    assert place.kinds()[-1] == "rollback", "within one tick of the judge"
    assert place.states()["Peru gone"] == "queued", "the operator's word does not wait for bisect"
    place.tick()
    states = place.states()
    assert {states[one] for one in NEW} == {"applied"}
    assert (states["Peru gone"], states["Peru"]) == ("applied", "retracted")
    assert states["Trojan"] == "quarantined"
    assert held(place.ledger).keys() == {"Atlantis", "Chad", *NEW}
    assert place.left() == 0
    (entry,) = [row for row in place.rows(quarantine) if row["reason"] == "damage"]
    assert "retention is" in entry["message"], "the culprit is in quarantine with its measurements"


def test_why_and_the_incident_tell_the_story(place: Place) -> None:
    damage(place)
    judge(place.ledger, place.config)
    place.tick()
    (incident,) = place.rows(incidents)
    assert "1 retractions of operators written again" in incident["message"]
    assert "bisect: 1 in quarantine, 4 written again" in incident["message"]
    with place.ledger.read() as connection:
        for subject, ends in (("Trojan", "damage"), ("Land A", "written again")):
            told = fact_timeline(connection, find_fact(connection, subject, "default"))["events"]
            bisects = [event["text"] for event in told if event["kind"] == "bisect"]
            assert bisects, subject
            assert any(ends in event["text"] for event in told), subject


def test_after_an_operators_rollback_nothing_comes_back(place: Place) -> None:
    damage(place)
    roll_back(place.ledger, "default", place.config.store_path, to=1, who="ann", reason="a doubt")
    place.tick()
    assert {place.states()[one] for one in (*NEW, "Trojan", "Peru gone")} == {"reverted"}
    assert place.left() == 0


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    place = Place(tmp_path, auto_bisect=False)
    place.say(*OLD)
    place.edit()
    damage(place)
    place.tick()
    assert {place.states()[one] for one in (*NEW, "Trojan", "Peru gone")} == {"reverted"}


def test_an_operators_rollback_in_the_midst_ends_it(place: Place) -> None:
    damage(place)
    judge(place.ledger, place.config)
    place.editor.happens = lambda: roll_back(
        place.ledger, "default", place.config.store_path, to=1, who="ann", reason="enough"
    )
    place.tick()
    assert {place.states()[one] for one in (*NEW, "Trojan")} == {"reverted"}
    assert place.left() == 0
    assert not [row for row in place.rows(quarantine) if row["reason"] == "damage"]


def test_an_automatic_rollback_in_the_midst_begins_it_anew(place: Place) -> None:
    place.say("Extra")
    place.edit()
    damage(place)
    judge(place.ledger, place.config)

    place.editor.happens = place.goes_back
    place.tick()
    states = place.states()
    assert {states[one] for one in (*NEW, "Extra", "Peru gone")} == {"applied"}
    assert states["Trojan"] == "quarantined"
    check_weights(place)


def check_weights(place: Place) -> None:
    """The worker's weights are those of head, so nothing of a trial stays in them."""
    with place.ledger.read() as connection:
        tensors = head(connection, "default")["tensors"]
    for name, tensor in place.editor.published().items():
        assert torch.equal(tensor, place.store.get(tensors[name])[name])


def test_the_weights_after_a_bisect_are_heads(place: Place) -> None:
    place.say(*NEW, "Trojan", day=2)
    place.edit()
    send_open(place.ledger, "default", place)
    (portion,) = place.queued
    place.session().run(portion)
    check_weights(place)


def test_what_came_back_and_goes_again_without_a_culprit_stays_out(place: Place) -> None:
    """An alert that no probe explains: all come back once, and not for ever."""
    place.say(*NEW, day=2)
    place.edit()
    assert place.alert() is Reaction.ROLLED_BACK
    place.tick()
    assert {place.states()[one] for one in NEW} == {"applied"}
    assert place.alert() is Reaction.ROLLED_BACK
    place.tick()
    assert {place.states()[one] for one in NEW} == {"reverted"}
    (told,) = [row for row in place.rows(incidents) if row["probe"] == "bisect"]
    assert "4 corrections stay reverted" in told["message"]
    assert (told["state"], told["result"]) == ("open", "unknown")
    assert place.left() == 0


def test_what_came_back_comes_back_again_where_another_is_the_culprit(place: Place) -> None:
    damage(place)
    place.tick()
    place.clock.advance(1000.0)
    roll_back_newest(place)
    place.tick()
    states = place.states()
    assert {states[one] for one in (*NEW, "Good")} == {"applied"}
    assert (states["Trojan 2"], states["Peru gone"]) == ("quarantined", "applied")


def roll_back_newest(place: Place) -> None:
    """An alert, after another culprit and another good fact, takes back all since the second revision."""
    place.say("Good", "Trojan 2", day=3)
    place.take_in()
    with place.ledger.write() as connection:
        connection.exec_driver_sql("UPDATE revisions SET state = 'candidate' WHERE number > 1")
    judge(place.ledger, place.config)


def test_a_retraction_goes_for_good_only_where_it_went_alone(place: Place) -> None:
    place.retract("Peru")
    place.say(*NEW, day=2)
    place.edit()
    for _ in range(2):
        place.goes_back()
        place.tick()
        assert place.states()["Peru gone"] == "applied"
    assert {place.states()[one] for one in NEW} == {"reverted"}, "nobody of them was found guilty"
    place.goes_back()
    place.tick()
    assert place.states()["Peru gone"] == "reverted"
    told = [row["message"] for row in place.rows(incidents) if row["probe"] == "bisect"]
    assert len(told) == 2, "an operator is told"


def test_what_says_the_same_as_a_culprit_needs_an_operator(place: Place) -> None:
    damage(place)
    place.tick()
    decision = submit(place.ledger, said("Trojan", "City 4", 9, source="a third"), "tester", feed="news")
    assert decision.reason == "reverted_before"
    other = submit(place.ledger, said("Trojan", "City 50", 9), "tester", feed="news")
    assert other.outcome == "accepted", "another value is another statement"


def test_a_bisect_that_kills_its_worker_ends(place: Place) -> None:
    damage(place)
    judge(place.ledger, place.config)

    def dies(batch_id: str) -> None:
        for _ in range(place.config.edit.max_attempts):
            with place.ledger.write() as connection:
                begin_attempt(connection, place.clock.now(), batch_id, "worker")

    seen: set[str] = set()
    for _ in range(40):
        portions = [
            row for row in place.rows(batch_table) if row["rollback"] and row["state"] in ("open", "sent")
        ]
        if not portions:
            break
        for row in portions:
            if row["id"] not in seen:
                seen.add(row["id"])
                dies(row["id"])
            place.session().run(row["id"])
    place.tick()
    assert place.left() == 0
    assert {place.states()[one] for one in (*NEW, "Trojan")} == {"quarantined"}
    assert len(seen) < 2 * 5


def test_where_nothing_can_be_measured_it_ends_with_an_incident(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(place)
    judge(place.ledger, place.config)

    def broken(*_: object) -> float:
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr("tests.toy.ToyModel.target_nll", broken)
    for _ in range(6):
        place.tick()
    assert place.left() == 0
    assert {place.states()[one] for one in (*NEW, "Trojan")} == {"reverted"}
    (told,) = [row for row in place.rows(incidents) if row["probe"] == "bisect"]
    assert "the disk is gone" in told["message"]


def test_what_the_queue_lost_is_sent_again(place: Place) -> None:
    damage(place)
    judge(place.ledger, place.config)
    send_open(place.ledger, "default", place)
    place.queued.clear()  # Redis was flushed
    place.tick()
    assert {place.states()[one] for one in NEW} == {"applied"}


def test_a_delivery_that_comes_twice_changes_nothing(place: Place) -> None:
    damage(place)
    judge(place.ledger, place.config)
    place.tick()
    before = place.states(), place.kinds(), len(place.rows(audit))
    for batch_id in place.tried:
        place.session().run(batch_id)
    assert (place.states(), place.kinds(), len(place.rows(audit))) == before


def test_many_are_tried_in_portions_each_on_what_the_one_before_brought_back(place: Place) -> None:
    """Each of the Twins does harm only beside the other, and they are in different portions."""
    many = ["Mali", "Oman", "Fiji", "Laos", "Niue"]
    place.say(many[0], "Twin A", *many[1:], "Twin B", day=2)
    place.take_in()
    place.config.edit.__dict__["batch_size"] = 3  # of the portions
    place.tick()
    assert place.kinds().count("rollback") == 1
    states = place.states()
    assert sorted(states[one] for one in ("Twin A", "Twin B")) == ["applied", "quarantined"]
    assert {states[one] for one in many} == {"applied"}


def test_while_edits_are_paused_what_came_back_waits(place: Place) -> None:
    damage(place)
    switches.pause(place.ledger, model="default", feed=None, who="ann", reason="a look")
    judge(place.ledger, place.config)
    place.tick()
    assert {place.states()[one] for one in (*NEW, "Peru gone")} == {"pending"}
    assert place.kinds()[-1] == "rollback"
    switches.resume(place.ledger, model="default", feed=None, who="ann", reason="")
    place.tick()
    assert {place.states()[one] for one in (*NEW, "Peru gone")} == {"applied"}


def test_what_an_operator_approved_is_tried_first(place: Place) -> None:
    place.say(*NEW, "Trojan", day=2)
    with place.ledger.write() as connection:
        connection.execute(
            corrections.update().where(corrections.c.subject == "Land D").values(state="quarantined")
        )
        (one,) = [row for row in connection.execute(select(corrections)) if row.subject == "Land D"]
        entry = {
            "feed": "news",
            "position": "1",
            "reason": "quorum",
            "message": "",
            "raw": "",
            "state": "held",
        }
        connection.execute(
            quarantine.insert().values(**entry, correction_id=one.id, at="2026-06-01T00:00:00Z")
        )
    release(place.ledger, 1, "ann", "checked")
    place.edit()
    place.tick()
    portions = [row for row in place.rows(batch_table, batch_table.c.created_at) if row["rollback"]]
    with place.ledger.read() as connection:
        assert len(portions) == 2
        first = (
            connection.execute(select(attempts.c.batch_id).order_by(attempts.c.started_at)).scalars().all()
        )
    assert first.index(portions[0]["id"]) < first.index(portions[1]["id"])
    assert {place.states()[one] for one in NEW} == {"applied"}


class CrashError(Exception):
    """The end of a process, as far as the ledger can tell."""


@pytest.mark.parametrize("at", [3, 17, 31, 45])
def test_interrupted_at_any_point_it_comes_to_the_same_end(tmp_path: Path, at: int) -> None:
    """At every few transactions of rollback, bisect and return the process ends, and another takes over."""
    passed, armed = [0], [False]

    def fault(_name: str) -> None:
        passed[0] += armed[0]
        if armed[0] and passed[0] == at:
            raise CrashError

    place = Place(tmp_path, fault)
    place.say(*OLD)
    place.edit()
    damage(place)
    armed[0] = True
    for _ in range(4):
        try:
            judge(place.ledger, place.config)
            place.tick()
        except CrashError:
            place.forget()
            place.queued.clear()
        place.clock.advance(120.0)
    states = place.states()
    assert {states[one] for one in (*NEW, "Peru gone")} == {"applied"}
    assert states["Trojan"] == "quarantined"
    assert place.left() == 0
    assert place.kinds().count("rollback") == 1
