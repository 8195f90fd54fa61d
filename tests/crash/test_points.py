"""Every named point of every write, one after the other: the process dies there, or the call fails there.

The points are those that ``fsio``, ``store``, ``session`` and ``ledger`` pass to their ``fault``. After
each cut the installation is checked as it lies, lives on to its end, and must end as the undisturbed one did.
"""

import errno
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import is_full
from tests.crash.conftest import copy_of
from tests.crash.life import Failpoint, Life, die, ended, fork, lives_on

Reference = tuple[list[str], dict[str, str]]


def chosen(points: list[int], share: int) -> list[int]:
    """All of them in the long run, else every ``share``-th."""
    return points if is_full() else points[::share]


def killed(folder: Path, at: int, ahead: float = 0.0) -> bool:
    """Run in a process that dies at its ``at``-th point, and return whether it reached it."""
    return ended(fork(lambda: Life(folder, Failpoint(at, die), ahead).go_on())) != 0


def test_every_declared_point_is_passed(reference: Reference) -> None:
    names = set(reference[0])
    declared = {
        "fsio.write", "fsio.fsync", "fsio.rename", "fsio.folder", "store.put",
        "session.attempt", "session.written", "session.saved", "session.committed",
        "ledger.begin", "ledger.commit", "ledger.committed",
    }  # fmt: skip
    assert names == declared


@pytest.mark.timeout(900)
def test_killed_at_every_point(template: Path, reference: Reference, tally: Counter[str]) -> None:
    names, end = reference
    for at in chosen(list(range(1, len(names) + 1)), 12):
        folder = copy_of(template)
        assert killed(folder, at), (at, names[at - 1])
        lives_on(folder, end)
        tally["killed at a named point"] += 1


@pytest.mark.timeout(900)
def test_killed_again_while_recovering(template: Path, reference: Reference, tally: Counter[str]) -> None:
    names, end = reference
    chance = random.Random(1)
    for _ in range(120 if is_full() else 3):
        folder = copy_of(template)
        cuts = [chance.randrange(1, len(names)) for _ in range(3)]
        for number, at in enumerate(cuts):
            killed(folder, at, ahead=60.0 * number)
        lives_on(folder, end, ahead=60.0 * len(cuts))
        tally["killed three times in a row"] += 1


def no_space(_name: str) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def broken_disk(_name: str) -> None:
    raise OSError(errno.EIO, "Input/output error")


def bug(_name: str) -> None:
    raise RuntimeError("a bug nobody thought of")


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("how", "where"),
    [
        (no_space, ("fsio.", "store.")),
        (broken_disk, ("fsio.", "store.")),
        (bug, ("session.", "ledger.")),
    ],
    ids=["no_space", "broken_disk", "bug"],
)
def test_failing_at_every_point(
    template: Path,
    reference: Reference,
    tally: Counter[str],
    how: Callable[[str], None],
    where: tuple[str, ...],
) -> None:
    """The same process goes on, warm, with the next delivery."""
    names, end = reference
    points = [place for place, name in enumerate(names, start=1) if name.startswith(where)]
    for at in chosen(points, 24):
        folder = copy_of(template)
        point = Failpoint(at, how)
        life = Life(folder, point)
        life.go_on()
        life.check()
        assert life.end() == end, (at, names[at - 1])
        life.close()
        shutil.rmtree(folder)
        tally[f"failing at a named point: {how.__name__}"] += 1
