"""Leases: one holder at a time, a token that only grows, and nobody writes with an old one."""

import pytest

from daemon.core.errors import FencedError, LeaseHeldError
from daemon.core.ledger import leases
from daemon.core.ledger.ledger import Ledger
from tests.ledgers import FakeClock

NAME = "writer:default"


def acquire(ledger: Ledger, holder: str, seconds: float = 20, note: str = "") -> leases.Lease:
    with ledger.write() as connection:
        return leases.acquire(connection, ledger.clock.now(), NAME, holder, seconds, note)


def check(ledger: Ledger, lease: leases.Lease) -> None:
    with ledger.read() as connection:
        leases.check(connection, lease)


def note(ledger: Ledger) -> str | None:
    with ledger.read() as connection:
        return leases.current_note(connection, ledger.clock.now(), NAME)


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
        taken = leases.overtake(connection, ledger.clock.now(), NAME, "operator")
    assert taken.token == held.token + 1
    with pytest.raises(FencedError):
        check(ledger, held)
    assert acquire(ledger, "b").token == taken.token + 1


def test_renewing_moves_the_end_and_keeps_the_token(ledger: Ledger, clock: FakeClock) -> None:
    lease = acquire(ledger, "a")
    clock.advance(15)
    with ledger.write() as connection:
        leases.renew(connection, clock.now(), lease, 20)
    clock.advance(10)
    with pytest.raises(LeaseHeldError):
        acquire(ledger, "b")
    check(ledger, lease)


def test_an_overtaken_holder_cannot_renew(ledger: Ledger, clock: FakeClock) -> None:
    old = acquire(ledger, "a")
    clock.advance(21)
    acquire(ledger, "b")
    with pytest.raises(FencedError), ledger.write() as connection:
        leases.renew(connection, clock.now(), old, 1000)
    clock.advance(21)
    acquire(ledger, "c")  # the failed renewal moved nothing


def test_releasing_frees_at_once_but_only_ones_own(ledger: Ledger, clock: FakeClock) -> None:
    old = acquire(ledger, "a")
    clock.advance(21)
    acquire(ledger, "b")
    with ledger.write() as connection:
        leases.release(connection, clock.now(), old)
    with pytest.raises(LeaseHeldError):
        acquire(ledger, "c")
    new = acquire(ledger, "b")
    with ledger.write() as connection:
        leases.release(connection, clock.now(), new)
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
        other = leases.acquire(connection, ledger.clock.now(), "writer:other", "b", 20)
    assert other.token == 1
