"""The judge over any history: batches, surveys, alerts, rollbacks, deaths of worker and daemon, two models.

Each measurement is judged once. What a rollback by the judge takes back is no more than what the evidence
accuses, and nothing that the degraded revision did not hold is lost.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, RowMapping, Table, select

from daemon.admission.submission import submit
from daemon.core.config.settings import Config
from daemon.core.errors import FencedError, NotFoundError, StaleHeadError
from daemon.core.ledger.audit import first_broken_row
from daemon.core.ledger.chain import get_revision, head, path
from daemon.core.ledger.leases import Lease
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.proposals import ProbeRow, Proposal
from daemon.core.ledger.schema import corrections, incidents, judgements, probe_results, revisions, tenures
from daemon.core.ledger.settlement import reverted_by
from daemon.core.ledger.switches import is_paused, resume
from daemon.core.names import ALL_PROBES, ProbeResult, RollbackCause, Subject
from daemon.watch.alerts import Delivery, receive
from daemon.watch.judge import judge, unjudged
from daemon.watch.rollback import roll_back
from tests.conftest import is_full
from tests.ledgers import FakeClock, found, make_batch, propose, statement, take_lease

COOLDOWN = 60
CONFIGS = {
    "default": Config.model_validate({"watch": {"cooldown_seconds": COOLDOWN}}),
    "other": Config.model_validate(
        {"model": {"name": "other"}, "watch": {"cooldown_seconds": COOLDOWN, "full_before_live": True}}
    ),
}
MODELS = st.sampled_from(sorted(CONFIGS))
RESULTS = st.sampled_from([ProbeResult.OK] * 4 + [ProbeResult.DEGRADED, ProbeResult.UNKNOWN])
DEATHS = st.integers(0, 8)  # faults until the process dies
NO_STORE = Path("there is no store")
SELDOM = st.integers(0, 1)  # an operator acts at 0 only
SHARE = st.floats(0, 1)


class DeathError(Exception):
    """The process was killed here."""


def measured(probe: str, result: ProbeResult) -> ProbeRow:
    """A measurement far on one side of its bound, so that its verdict is known."""
    score = {ProbeResult.OK: 1.0, ProbeResult.DEGRADED: 0.0, ProbeResult.UNKNOWN: None}[result]
    return ProbeRow(probe, 1, result, score, 0.5, 4, 0.1)


class JudgeMachine(RuleBasedStateMachine):
    """Its rules are the acts of worker, daemon, monitoring and operator."""

    template: ClassVar[Path]

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory(dir=self.template.parent)
        shutil.copyfile(self.template, Path(self.folder.name) / "ledger.sqlite")
        self.faults_left: int | None = None
        self.clock = FakeClock()
        url = f"sqlite:///{self.folder.name}/ledger.sqlite"
        self.ledger = Ledger.open(url, self.clock, self.fault)
        self.facts = 0
        self.holds: dict[str, list[frozenset[str]]] = {model: [frozenset()] for model in CONFIGS}
        self.flights: dict[str, tuple[Lease, Proposal]] = {}
        self.judged: dict[tuple[str, int], tuple[dict[str, int], set[str]]] = {}
        self.firing: list[dict[str, Any]] = []

    def fault(self, _name: str) -> None:
        if self.faults_left is not None:
            self.faults_left -= 1
            if self.faults_left < 0:
                self.faults_left = None
                raise DeathError

    # -- worker ----------------------------------------------------------------------------------------

    @rule(model=MODELS)
    def say(self, model: str) -> None:
        self.facts += 1
        submit(self.ledger, statement(f"Country {self.facts}", "X", model=model), "tester")

    @rule(model=MODELS, result=RESULTS)
    def plan(self, model: str, result: ProbeResult) -> None:
        """Plan what waits. What was planned before, by a worker that died, is planned again."""
        with self.ledger.read() as connection:
            if is_paused(connection, model):
                return
            mine = (corrections.c.model == model) & (corrections.c.state == "queued")
            batch = connection.execute(select(corrections.c.batch_id).where(mine).limit(1)).scalar()
        batch = batch or make_batch(self.ledger, model)
        if batch is not None:
            proposal = propose(self.ledger, batch, model=model)
            probes = [measured("quiz", result)]
            self.flights[model] = take_lease(self.ledger, model=model), replace(proposal, probes=probes)

    @precondition(lambda self: self.flights)
    @rule(model=MODELS, death=st.none() | DEATHS)
    def commit(self, model: str, death: int | None) -> None:
        if model not in self.flights:
            return
        lease, proposal = self.flights.pop(model)
        self.faults_left = death
        with suppress(FencedError, StaleHeadError, DeathError):
            self.ledger.commit(lease, proposal)
        self.faults_left = None
        if self.head_of(model) == len(self.holds[model]):
            written = frozenset(one.correction_id for one in proposal.written)
            self.holds[model].append(self.holds[model][-1] | written)

    @rule(model=MODELS, result=RESULTS)
    def edit(self, model: str, result: ProbeResult) -> None:
        """The usual case, in one step: what waits is written."""
        self.say(model)
        self.plan(model, result)
        self.commit(model, None)

    @rule(model=MODELS, results=st.lists(RESULTS, min_size=2, max_size=4))
    def edits(self, model: str, results: list[ProbeResult]) -> None:
        """The worker is faster than the judge."""
        for result in results:
            self.edit(model, result)

    @rule(model=MODELS, share=st.just(1.0) | SHARE, quiz=RESULTS, whole=st.booleans())
    def survey(self, model: str, share: float, quiz: ProbeResult, whole: bool) -> None:
        """A survey of a revision that is or was head ends."""
        number = round(share * self.head_of(model))
        rows = [measured("quiz", quiz)] + ([measured(ALL_PROBES, ProbeResult.OK)] if whole else [])
        self.ledger.record_probes(model, number, rows)

    # -- daemon ----------------------------------------------------------------------------------------

    @rule(model=MODELS)
    def judge(self, model: str) -> None:
        before = self.head_of(model)
        judge(self.ledger, CONFIGS[model])
        self.look_at_reaction(model, before)
        with self.ledger.read() as connection:
            assert unjudged(connection, model) == []
        held = set(self.path_of(model))
        for row in self.rows(incidents, model):
            assert (row["state"], row["result"]) != ("open", "degraded") or row["revision"] not in held

    @rule(model=MODELS, death=DEATHS)
    def judge_and_die(self, model: str, death: int) -> None:
        before, self.faults_left = self.head_of(model), death
        with suppress(DeathError):
            judge(self.ledger, CONFIGS[model])
        self.faults_left = None
        self.look_at_reaction(model, before)

    @rule(seconds=st.sampled_from([1, 30, COOLDOWN + 1]))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    # -- monitoring ------------------------------------------------------------------------------------

    @rule(model=MODELS, share=st.none() | SHARE, again=st.booleans(), probe=st.booleans())
    def alert(self, model: str, share: float | None, again: bool, probe: bool) -> None:
        labels = {"alertname": "Wrong", "action": "rollback", "model": model}
        labels |= {"probe": "quiz"} if probe else {}
        labels |= {} if share is None else {"revision": str(round(share * self.head_of(model)))}
        new = {"status": "firing", "labels": labels, "startsAt": self.clock.now().isoformat()}
        if not again or not self.firing:
            self.firing.append(new)
        one = self.firing[-1]
        model = one["labels"]["model"]
        before, accused = self.head_of(model), one["labels"].get("revision")
        held = set(self.path_of(model))
        receive(self.ledger, CONFIGS[model], Delivery.read([one]))
        self.look_at_reaction(model, before)
        if self.head_of(model) != before and accused is not None:
            assert int(accused) in held
            assert int(accused) not in self.path_of(model)

    # -- operator --------------------------------------------------------------------------------------

    @rule(model=MODELS, share=SHARE, cause=st.sampled_from(["operator", "recovery"]), seldom=SELDOM)
    def rollback(self, model: str, share: float, cause: str, seldom: int) -> None:
        if seldom:
            return
        to = round(share * self.head_of(model))
        self.ledger.rollback(
            model, to, who="op", reason="why", cause=RollbackCause(cause), check=lambda _blobs: None
        )
        self.holds[model].append(self.holds[model][to])

    @rule(model=MODELS, seldom=SELDOM)
    def last_good(self, model: str, seldom: int) -> None:
        if seldom:
            return
        held = set(self.path_of(model))
        try:
            number = roll_back(self.ledger, model, NO_STORE, last_good=True, who="op", reason="3 a.m.")
        except NotFoundError:
            return
        target = self.revision(model, number)["content_of"]
        assert target in held, "never what anybody took back"
        self.holds[model].append(self.holds[model][target])

    @rule(model=MODELS)
    def resume(self, model: str) -> None:
        resume(self.ledger, model=model, feed=None, who="op", reason="looked")

    # -- looks -----------------------------------------------------------------------------------------

    def head_of(self, model: str) -> int:
        with self.ledger.read() as connection:
            return int(head(connection, model)["number"])

    def path_of(self, model: str, number: int | None = None) -> list[int]:
        with self.ledger.read() as connection:
            return path(connection, model, self.head_of(model) if number is None else number)

    def revision(self, model: str, number: int) -> RowMapping:
        with self.ledger.read() as connection:
            return get_revision(connection, model, number)

    def rows(self, table: Table, model: str) -> list[RowMapping]:
        with self.ledger.read() as connection:
            return list(connection.execute(select(table).where(table.c.model == model)).mappings())

    def look_at_reaction(self, model: str, before: int) -> None:
        """A rollback by evidence goes to the newest good revision before what is accused, and no further."""
        after = self.head_of(model)
        if after == before:
            return
        assert after == before + 1, "one rollback for all"
        row, led = self.revision(model, after), self.path_of(model, before)
        answered = [one for one in self.rows(incidents, model) if one["rollback_revision"] == after]
        accused = {one["revision"] for one in answered if one["state"] == "rolled_back"}
        assert row["cause"] in ("judge", "alert")
        assert accused
        assert all(one["subject"] == Subject.REVISION for one in answered)
        assert accused <= set(led), "evidence against what head held"
        target, contents = (
            row["content_of"],
            {self.revision(model, one)["content"] for one in {*accused, before}},
        )
        assert target in led
        assert row["state"] == "live"
        assert row["content"] not in contents
        for number in (one for one in led if target < one < min(accused)):
            between = self.revision(model, number)
            assert between["state_before"] != "live" or between["content"] in contents, "lost without need"
        lost = self.holds[model][before] - self.holds[model][target]
        with self.ledger.read() as connection:
            assert set(reverted_by(connection, model, after)) == lost, "recorded, so that it can come back"
        self.holds[model].append(self.holds[model][target])

    # -- what holds at every moment --------------------------------------------------------------------

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        for model in CONFIGS:
            with self.ledger.read() as connection:
                self.each_revision_holds_what_it_held(connection, model)
                self.each_correction_has_the_state_that_head_gives_it(connection, model)
                self.what_head_does_not_hold_is_rejected(connection, model)
                self.each_measurement_is_judged_once(connection, model)

    def each_revision_holds_what_it_held(self, connection: Connection, model: str) -> None:
        columns = (tenures.c.correction_id, tenures.c.since, tenures.c.until)
        spans = connection.execute(select(*columns).where(tenures.c.model == model)).all()
        for number, held in enumerate(self.holds[model]):
            now = {
                one for one, since, until in spans if since <= number and (until is None or until > number)
            }
            assert now == held

    def each_correction_has_the_state_that_head_gives_it(self, connection: Connection, model: str) -> None:
        history = self.holds[model]
        ever = frozenset[str]().union(*history)
        query = select(corrections.c.id, corrections.c.state).where(corrections.c.model == model)
        for one, state in connection.execute(query):
            if one in history[-1]:
                assert state == "applied"
            else:
                assert state in (("reverted",) if one in ever else ("pending", "queued"))

    def what_head_does_not_hold_is_rejected(self, connection: Connection, model: str) -> None:
        columns = (revisions.c.number, revisions.c.taken_back_by, revisions.c.state)
        chain = connection.execute(select(*columns).where(revisions.c.model == model)).all()
        assert len(chain) == len(self.holds[model])
        held = set(path(connection, model, len(chain) - 1))
        for number, taken_back_by, state in chain:
            assert (taken_back_by is None) is (number in held)
            assert number in held or state == "rejected"

    def each_measurement_is_judged_once(self, connection: Connection, model: str) -> None:
        """A judgement is of the newest measurement there was, and stays until there is a newer one."""
        same = judgements.c.measurement == probe_results.c.id
        for name in ("model", "revision", "probe", "result"):
            same &= judgements.c[name] == probe_results.c[name]
        columns = (
            judgements.c.revision,
            judgements.c.probe,
            judgements.c.measurement,
            judgements.c.judged_at,
        )
        mine = select(*columns, probe_results.c.id).where(judgements.c.model == model)
        now: dict[tuple[str, int], tuple[dict[str, int], set[str]]] = {}
        for row in connection.execute(mine.select_from(judgements.outerjoin(probe_results, same))):
            assert row.id is not None, "the verdict is that of the measurement"
            by_probe, moments = now.setdefault((model, row.revision), ({}, set()))
            by_probe[row.probe] = row.measurement
            moments.add(row.judged_at)
        for key, (by_probe, moments) in now.items():
            was = self.judged.get(key)
            assert was is None or was[0] != by_probe or was[1] == moments, "judged twice"
        assert {key for key in self.judged if key[0] == model} <= now.keys()
        self.judged |= now

    def teardown(self) -> None:
        """When all is judged and written, nothing waits and the audit is whole."""
        if not hasattr(self, "ledger"):
            return
        try:
            self.finish()
        finally:
            self.ledger.close()
            self.folder.cleanup()

    def waits(self, model: str) -> bool:
        return any(row["state"] in ("pending", "queued") for row in self.rows(corrections, model))

    def finish(self) -> None:
        for model in CONFIGS:
            self.wait(COOLDOWN + 1)
            self.judge(model)
            self.resume(model)
            while self.waits(model):
                self.plan(model, ProbeResult.OK)
                self.commit(model, None)
            self.judge(model)
        self.all_is_as_it_should_be()
        with self.ledger.read() as connection:
            assert first_broken_row(connection) is None


@pytest.fixture
def template() -> Iterator[Path]:
    """A ledger of two models, in memory where there is such a folder: durability is not the subject."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        file = Path(folder) / "template.sqlite"
        ledger = Ledger.open(f"sqlite:///{file}", FakeClock())
        for model in CONFIGS:
            found(ledger, model)
        with ledger.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        ledger.close()
        yield file


def test_any_history_is_judged_once_and_loses_nothing_but_what_is_accused(template: Path) -> None:
    run_state_machine_as_test(
        type("Machine", (JudgeMachine,), {"template": template}),
        settings=settings(
            database=None,
            deadline=None,
            max_examples=400 if is_full() else 12,
            stateful_step_count=40 if is_full() else 30,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],  # shrinking takes minutes: add Phase.shrink when something is found
        ),
    )


def test_the_machine_sees_rollbacks_and_freezes(template: Path) -> None:
    """One history by hand, so that the checks of a reaction are known to be reached."""
    machine = type("Machine", (JudgeMachine,), {"template": template})()
    machine.open()
    model = "default"
    for result in (ProbeResult.OK, ProbeResult.OK, ProbeResult.DEGRADED):
        machine.say(model)
        machine.plan(model, result)
        machine.commit(model, None)
        machine.survey("other", 0.0, ProbeResult.OK, whole=True)
        machine.judge(model)
    assert machine.revision(model, machine.head_of(model))["content_of"] == 2
    machine.clock.advance(timedelta(seconds=COOLDOWN / 2).total_seconds())
    machine.survey(model, 1.0, ProbeResult.DEGRADED, whole=False)
    machine.judge(model)
    assert [row["state"] for row in machine.rows(incidents, model)] == ["rolled_back", "frozen"]
    machine.teardown()
