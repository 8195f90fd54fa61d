"""Leases: one holder at a time, a token that only grows, and nobody writes with an old one."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import insert, update
from structlog.testing import capture_logs

from daemon.core.clock import to_text
from daemon.core.errors import FencedError, LeaseHeldError
from daemon.core.ledger import leases
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import leases as lease_table
from tests.ledgers import FakeClock

NAME = "writer:default"


def acquire(ledger: Ledger, holder: str, seconds: float = 20, note: str = "") -> leases.Lease:
    with ledger.write() as connection:
        return leases.acquire(connection, ledger.lease_clock, NAME, holder, seconds, note)


def check(ledger: Ledger, lease: leases.Lease) -> None:
    with ledger.read() as connection:
        leases.check(connection, lease)


def note(ledger: Ledger) -> str | None:
    with ledger.read() as connection:
        return leases.current_note(connection, ledger.lease_clock, NAME)


def test_a_held_lease_is_refused_and_names_its_holder(ledger: Ledger) -> None:
    acquire(ledger, "a")
    with pytest.raises(LeaseHeldError, match="held by a until 2026-06-01T00:00:20"):
        acquire(ledger, "b")


def test_an_expired_lease_is_free_and_the_old_holder_is_fenced(ledger: Ledger, clock: FakeClock) -> None:
    old = acquire(ledger, "a")
    clock.advance(20)
    new = acquire(ledger, "b")
    assert new.token == old.token + 1
    with pytest.raises(FencedError, match=f"token {old.token} was overtaken by {new.token}"):
        check(ledger, old)
    check(ledger, new)


def test_taking_ones_own_lease_again_fences_ones_own_past(ledger: Ledger) -> None:
    first = acquire(ledger, "a")
    second = acquire(ledger, "a")
    assert second.token == first.token + 1
    with pytest.raises(FencedError):
        check(ledger, first)


def test_overtaking_fences_the_holder_and_leaves_the_lease_free(ledger: Ledger) -> None:
    held = acquire(ledger, "a")
    with ledger.write() as connection:
        taken = leases.overtake(connection, ledger.lease_clock, NAME, "operator")
    assert taken.token == held.token + 1
    with pytest.raises(FencedError):
        check(ledger, held)
    assert acquire(ledger, "b").token == taken.token + 1


def test_renewing_moves_the_end_and_keeps_the_token(ledger: Ledger, clock: FakeClock) -> None:
    lease = acquire(ledger, "a")
    clock.advance(15)
    with ledger.write() as connection:
        leases.renew(connection, ledger.lease_clock, lease, 20)
    clock.advance(10)
    with pytest.raises(LeaseHeldError):
        acquire(ledger, "b")
    check(ledger, lease)


def test_an_overtaken_holder_cannot_renew(ledger: Ledger, clock: FakeClock) -> None:
    old = acquire(ledger, "a")
    clock.advance(21)
    acquire(ledger, "b")
    with pytest.raises(FencedError), ledger.write() as connection:
        leases.renew(connection, ledger.lease_clock, old, 1000)
    clock.advance(21)
    acquire(ledger, "c")  # the failed renewal moved nothing


def test_releasing_frees_at_once_but_only_ones_own(ledger: Ledger, clock: FakeClock) -> None:
    old = acquire(ledger, "a")
    clock.advance(21)
    acquire(ledger, "b")
    with ledger.write() as connection:
        leases.release(connection, ledger.lease_clock, old)
    with pytest.raises(LeaseHeldError):
        acquire(ledger, "c")
    new = acquire(ledger, "b")
    with ledger.write() as connection:
        leases.release(connection, ledger.lease_clock, new)
    acquire(ledger, "c")


def test_the_note_is_seen_only_while_the_lease_runs(ledger: Ledger, clock: FakeClock) -> None:
    assert note(ledger) is None
    acquire(ledger, "a", note="b123")
    assert note(ledger) == "b123"
    clock.advance(20)
    assert note(ledger) is None


def test_leases_of_different_names_do_not_meet(ledger: Ledger) -> None:
    acquire(ledger, "a")
    with ledger.write() as connection:
        other = leases.acquire(connection, ledger.lease_clock, "writer:other", "b", 20)
    assert other.token == 1


@pytest.mark.parametrize("step", [-86_400, -60, 3_600, 86_400 * 3_650])
def test_a_step_of_the_clock_neither_ends_a_lease_nor_makes_it_longer(
    ledger: Ledger, clock: FakeClock, step: float
) -> None:
    acquire(ledger, "a")
    clock.step(step)
    clock.advance(19)
    with pytest.raises(LeaseHeldError):
        acquire(ledger, "b")
    clock.advance(1)
    acquire(ledger, "b")


def test_steps_between_renewals_change_nothing(ledger: Ledger, clock: FakeClock) -> None:
    lease = acquire(ledger, "a")
    for step in (3_600, -3_600, -60, 7_200):
        clock.step(step)
        clock.advance(15)
        with ledger.write() as connection:
            leases.renew(connection, ledger.lease_clock, lease, 20)
        with pytest.raises(LeaseHeldError):
            acquire(ledger, "b")


def left_by_another_boot(ledger: Ledger, **more: Any) -> None:
    acquire(ledger, "gone:1", 20, "leads")
    with ledger.write() as connection:
        connection.execute(update(lease_table).values(boot="another", renewed=5e6, **more))


def test_what_another_host_left_is_over_when_it_was_not_renewed_for_its_length(
    ledger: Ledger, clock: FakeClock
) -> None:
    left_by_another_boot(ledger, expires_at=to_text(clock.now() + timedelta(hours=2)))
    with capture_logs() as said:
        for _ in range(3):
            with pytest.raises(LeaseHeldError):
                acquire(ledger, "b")
            clock.advance(6)
        clock.advance(2)
        acquire(ledger, "b")
    first, last = said
    assert (first["lease"], first["holder"], first["within_seconds"]) == (NAME, "gone:1", 20)
    assert (last["event"], last["dated"]) == ("lease taken over", "2026-06-01T02:00:00.000000Z")


def test_what_another_host_renews_is_held(ledger: Ledger, clock: FakeClock) -> None:
    left_by_another_boot(ledger)
    for renewed in range(5):
        with ledger.write() as connection:
            connection.execute(update(lease_table).values(renewed=renewed))
        with pytest.raises(LeaseHeldError):
            acquire(ledger, "b")
        clock.advance(19)


@pytest.mark.parametrize(("dated", "waits"), [(7_200, 20), (-5, 0)], ids=["ahead", "past"])
def test_a_lease_of_an_older_errata_without_a_length_is_taken_within_ones_own(
    ledger: Ledger, clock: FakeClock, dated: float, waits: float
) -> None:
    row = {"name": NAME, "holder": "old:1", "token": 41, "note": "leads"}
    with ledger.write() as connection:
        expires = to_text(clock.now() + timedelta(seconds=dated))
        connection.execute(insert(lease_table).values(**row, expires_at=expires))
    if waits:
        with pytest.raises(LeaseHeldError):
            acquire(ledger, "b")
    clock.advance(waits)
    assert acquire(ledger, "b").token == 42
