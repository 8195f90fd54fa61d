"""The ledger and admission against a plain dict: any sequence of statements, edits and rollbacks."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select
from sqlalchemy.engine import make_url

from daemon.admission.admit import admit
from daemon.admission.quarantine import release
from daemon.core.corrections import from_mapping, order_key
from daemon.core.errors import FencedError, StaleHeadError
from daemon.core.ledger import batches
from daemon.core.ledger.audit import first_broken_row
from daemon.core.ledger.chain import path
from daemon.core.ledger.leases import Lease
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.proposals import Proposal
from daemon.core.ledger.revision import content_hash
from daemon.core.ledger.schema import corrections, quarantine, revisions, tenures
from tests import postgres
from tests.conftest import is_full
from tests.ledgers import (
    BASE,
    START,
    FakeClock,
    digest,
    found,
    items,
    propose,
    roll_back,
    statement,
    take_lease,
)

CARRYING = ("pending", "queued", "applied")
WAITING = ("pending", "queued")
COUNTRIES = ("France", "Peru")
Copied = Callable[[], AbstractContextManager[str]]
"""Gives the URL of a founded ledger of one's own."""


@dataclass
class Said:
    """One statement as the model knows it."""

    id: str
    country: str
    city: str | None
    key: str
    state: str = ""


class Model:
    """What the ledger should say, kept in a dict and a list."""

    def __init__(self) -> None:
        self.said: dict[str, Said] = {}
        self.holds: dict[str, str] = {}  # country -> id of the correction that head holds
        self.history: list[dict[str, str]] = [{}]

    def of(self, country: str, *states: str) -> list[Said]:
        return [one for one in self.said.values() if one.country == country and one.state in states]

    def any(self, *states: str) -> bool:
        return any(one.state in states for one in self.said.values())

    def admit(self, new: Said, *, released: bool = False) -> str:
        """Apply newest-wins to a statement in the simplest way and return the outcome."""
        carrier = max(self.of(new.country, *CARRYING), key=lambda one: one.key, default=None)
        value = carrier.city if carrier else None
        agreeing = [one for one in self.of(new.country, "confirmed") if one.city == value]
        newest = max([*([carrier] if carrier else []), *agreeing], key=lambda one: one.key, default=None)
        older = [one for one in self.said.values() if one.country == new.country and one.key < new.key]
        reverted = max(self.of(new.country, "reverted"), key=lambda one: one.key, default=None)
        self.said[new.id] = new
        if newest and new.key < newest.key:
            new.state = "superseded"
            return "stale"
        if new.city == value:
            for one in older:
                one.state = "superseded" if one.state == "confirmed" else one.state
            new.state = "confirmed"
            return "confirmed"
        if reverted and not released and reverted.city == new.city:
            new.state = "quarantined"
            return "quarantined"
        beaten = [one for one in older if one.state in WAITING]
        for one in older:
            followed = one.state == "confirmed" and one.city in [lost.city for lost in beaten]
            one.state = "superseded" if one in beaten or followed else one.state
        new.state = "pending"
        return "accepted"

    def commit(self, written: list[str], refused: list[str]) -> None:
        for one in (self.said[id_] for id_ in written):
            if before := self.holds.get(one.country):
                self.said[before].state = "retracted" if one.city is None else "superseded"
            self.holds[one.country] = one.id
            one.state = "applied"
        for id_ in refused:
            self.said[id_].state = "quarantined"
        self.history.append(dict(self.holds))

    def rollback(self, to: int) -> None:
        target = self.history[to]
        for country in set(self.holds) | set(target):
            old, new = self.holds.get(country), target.get(country)
            if old == new:
                continue
            if old and new and self.said[new].key > self.said[old].key:
                self.said[old].state = "retracted" if self.said[new].city is None else "superseded"
            elif old:
                self.said[old].state = "reverted"
            if new:
                self.said[new].state = "applied"
                for one in self.of(country, *WAITING):
                    one.state = "superseded" if one.key < self.said[new].key else one.state
        self.holds = dict(target)
        self.history.append(dict(target))


@dataclass
class Flight:
    """An edit that was planned and is not committed yet."""

    lease: Lease
    proposal: Proposal


class LedgerMachine(RuleBasedStateMachine):
    """A state machine whose rules are the acts of feeds, workers and operators."""

    copied: ClassVar[Copied]
    statements = Bundle("statements")

    @initialize()
    def open(self) -> None:
        self.stack = ExitStack()
        self.clock = FakeClock()
        self.ledger = Ledger.open(self.stack.enter_context(self.copied()), self.clock)
        self.model = Model()
        self.flight: Flight | None = None
        self.token = 0  # of the newest lease
        self.undisturbed = True  # no rollback and no refusal: then the newest statement must win

    # -- feeds -----------------------------------------------------------------------------------------

    @rule(
        target=statements,
        country=st.sampled_from(COUNTRIES),
        city=st.sampled_from(["Lyon", "Nice", None]),
        day=st.integers(0, 6),
        source=st.sampled_from(["a", "b"]),
    )
    def say(self, country: str, city: str | None, day: int, source: str) -> dict[str, Any]:
        said = statement(country, city, day, source=source)
        correction = from_mapping(said)
        known = correction.correction_id in self.model.said
        key = order_key(correction, 50, START)
        new = Said(correction.correction_id, country, city, key)
        expected = "duplicate" if known else self.model.admit(new)
        assert self.deliver(said) == expected
        return said

    @rule(said=statements)
    def say_again(self, said: dict[str, Any]) -> None:
        assert self.deliver(said) == "duplicate"

    def deliver(self, said: dict[str, Any]) -> str:
        with self.ledger.write() as connection:
            report = admit(connection, self.clock.now(), "news", 50, items(said))
        return str(report.decisions[0].outcome)

    # -- workers ---------------------------------------------------------------------------------------

    @precondition(lambda self: self.model.any("pending"))
    @rule(count=st.integers(1, 4))
    def batch(self, count: int) -> None:
        with self.ledger.write() as connection:
            waits = select(corrections.c.id).where(corrections.c.state == "pending")
            ids = connection.execute(waits.order_by(corrections.c.seq).limit(count)).scalars().all()
            if ids:
                batches.create(connection, self.clock.now(), "default", ids)
        for id_ in ids:
            self.model.said[id_].state = "queued"

    @precondition(lambda self: self.flight is None and self.model.any("queued"))
    @rule(refuses=st.booleans())
    def plan(self, refuses: bool) -> None:
        with self.ledger.read() as connection:
            queued = select(corrections.c.batch_id, corrections.c.id).where(corrections.c.state == "queued")
            row = connection.execute(queued.order_by(corrections.c.seq)).first()
        assert row is not None
        lease = take_lease(self.ledger)
        self.token = lease.token
        self.flight = Flight(lease, propose(self.ledger, row.batch_id, [row.id] if refuses else []))

    @precondition(lambda self: self.flight is not None)
    @rule()
    def commit(self) -> None:
        assert self.flight is not None
        lease, proposal = self.flight.lease, self.flight.proposal
        self.flight = None
        if lease.token != self.token or proposal.parent != len(self.model.history) - 1:
            with pytest.raises((FencedError, StaleHeadError)):
                self.ledger.commit(lease, proposal)
            return
        assert self.ledger.commit(lease, proposal) == len(self.model.history)
        refused = [refusal.correction_id for refusal in proposal.refused]
        self.model.commit([written.correction_id for written in proposal.written], refused)
        self.undisturbed &= not refused
        with pytest.raises(StaleHeadError):  # delivered twice
            self.ledger.commit(lease, proposal)

    @precondition(lambda self: self.flight is None and self.model.any(*WAITING))
    @rule()
    def edit(self) -> None:
        """The usual case, in one step: what waits is written."""
        self.batch(4)
        self.plan(refuses=False)
        self.commit()

    # -- operators -------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.model.history) > 1)
    @rule(share=st.floats(0, 1))
    def rollback(self, share: float) -> None:
        to = round(share * (len(self.model.history) - 1))
        assert roll_back(self.ledger, to, "op", "why") == len(self.model.history)
        self.model.rollback(to)
        self.token += 1
        self.undisturbed = False

    @precondition(lambda self: self.model.any("quarantined"))
    @rule(share=st.floats(0, 1))
    def release(self, share: float) -> None:
        with self.ledger.read() as connection:
            held = select(quarantine.c.id, quarantine.c.correction_id).where(quarantine.c.state == "held")
            rows = connection.execute(held.order_by(quarantine.c.id)).all()
        if not rows:
            return
        row = rows[round(share * (len(rows) - 1))]
        one = self.model.said[row.correction_id]
        expected = "duplicate"
        if one.state == "quarantined":
            expected = self.model.admit(self.model.said.pop(row.correction_id), released=True)
        assert release(self.ledger, row.id, "op", "why").outcome == expected

    # -- what holds at every moment --------------------------------------------------------------------

    @invariant()
    def states_are_those_of_the_model(self) -> None:
        with self.ledger.read() as connection:
            rows = connection.execute(select(corrections.c.id, corrections.c.state)).all()
        assert {row.id: row.state for row in rows} == {id_: one.state for id_, one in self.model.said.items()}

    @invariant()
    def what_a_revision_holds_never_changes(self) -> None:
        with self.ledger.read() as connection:
            spans = connection.execute(select(tenures)).all()
            chain = connection.execute(select(revisions).order_by(revisions.c.number)).all()
        by_id = self.model.said
        for row, expected in zip(chain, self.model.history, strict=True):
            holds = [s for s in spans if s.since <= row.number and (s.until is None or s.until > row.number)]
            assert len(holds) == len(expected)
            assert {by_id[span.correction_id].country: span.correction_id for span in holds} == expected
            assert row.active_facts == sum(by_id[id_].city is not None for id_ in expected.values())
            assert row.content == self.content_of(expected)

    def content_of(self, holds: dict[str, str]) -> str:
        """What the writer of these tests makes of a set of facts: the same set, the same content."""
        if not holds:
            return content_hash(BASE)
        by_fact = {from_mapping(statement(country, None)).fact_id: id_ for country, id_ in holds.items()}
        return content_hash({"down_proj": digest(sorted(by_fact.items()))})

    @invariant()
    def what_head_does_not_hold_was_taken_back_and_is_rejected(self) -> None:
        with self.ledger.read() as connection:
            chain = connection.execute(select(revisions).order_by(revisions.c.number)).all()
            held = set(path(connection, "default", chain[-1].number))
        for row in chain:
            assert (row.taken_back_by is None) is (row.number in held)
            assert row.taken_back_by is None or (row.state == "rejected" and row.state_before is not None)

    @invariant()
    def applied_is_what_head_holds(self) -> None:
        with self.ledger.read() as connection:
            applied = select(corrections.c.id).where(corrections.c.state == "applied")
            open_ones = select(tenures.c.correction_id).where(tenures.c.until.is_(None))
            assert sorted(connection.execute(applied).scalars()) == sorted(
                connection.execute(open_ones).scalars()
            )

    @invariant()
    def at_most_one_waits_for_each_fact_and_it_is_newer_than_what_is_held(self) -> None:
        for country in COUNTRIES:
            waiting = self.model.of(country, *WAITING)
            assert len(waiting) <= 1
            for one in waiting:
                assert all(one.key > held.key for held in self.model.of(country, "applied"))

    def teardown(self) -> None:
        """When all that waits is written, the newest statement of each fact holds it."""
        if not hasattr(self, "ledger"):
            return
        try:
            self.flight = None
            while self.model.any(*WAITING):
                self.edit()
            if self.undisturbed:
                self.newest_wins()
            with self.ledger.read() as connection:
                assert first_broken_row(connection) is None
        finally:
            self.ledger.close()
            self.stack.close()

    def newest_wins(self) -> None:
        for country in COUNTRIES:
            mine = [one for one in self.model.said.values() if one.country == country]
            newest = max(mine, key=lambda one: one.key, default=None)
            holder = self.model.said.get(self.model.holds.get(country, ""))
            assert (holder.city if holder else None) == (newest.city if newest else None)


@pytest.fixture
def copied() -> Iterator[Copied]:
    """Copies of a founded ledger, in memory where there is such a folder: durability is not the subject."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        template = Path(folder) / "template.sqlite"
        ledger = Ledger.open(f"sqlite:///{template}", FakeClock())
        found(ledger)
        with ledger.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        ledger.close()

        @contextmanager
        def copy() -> Iterator[str]:
            with tempfile.TemporaryDirectory(dir=folder) as mine:
                shutil.copyfile(template, Path(mine) / "ledger.sqlite")
                yield f"sqlite:///{Path(mine) / 'ledger.sqlite'}"

        yield copy


def run_machine(copied: Copied, examples: int) -> None:
    machine = type("Machine", (LedgerMachine,), {"copied": staticmethod(copied)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            database=None,
            deadline=None,
            max_examples=examples,
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],  # shrinking takes minutes: add Phase.shrink when something is found
        ),
    )


def test_any_history_ends_as_the_model_says(copied: Copied) -> None:
    run_machine(copied, 300 if is_full() else 25)


@pytest.mark.postgres
def test_any_history_ends_as_the_model_says_on_postgresql(postgres_server: str) -> None:
    with postgres.database(postgres_server) as template:
        ledger = Ledger.open(template, FakeClock())
        found(ledger)
        ledger.close()
        name = str(make_url(template).database)
        run_machine(lambda: postgres.database(postgres_server, name), 60 if is_full() else 3)
