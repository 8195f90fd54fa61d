"""Workers that are killed at random moments, two at a time, each sure that the lease is its own."""

import os
import random
import shutil
import signal
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from daemon.core.names import CorrectionState
from tests.conftest import is_full
from tests.crash.conftest import copy_of
from tests.crash.life import Life, ended, fork

KILLS = 200 if is_full() else 12
LONGEST = 0.5  # seconds that a life may last
DONE = {
    CorrectionState.APPLIED,
    CorrectionState.CONFIRMED,
    CorrectionState.QUARANTINED,
    CorrectionState.RETRACTED,
    CorrectionState.REVERTED,
    CorrectionState.SUPERSEDED,
}


@pytest.mark.timeout(900)
def test_killed_at_random(template: Path, tally: Counter[str]) -> None:
    """The clock of each life is ahead of the one before: it takes the lease from whoever holds it."""
    chance = random.Random(7)
    kills = lives = 0
    while kills < KILLS:
        folder = copy_of(template)
        for _ in range(chance.randrange(1, 6)):
            lives += 2
            pids = [fork(partial(live, folder, 60.0 * n)) for n in (lives, lives + 1)]
            for pid in pids:
                time.sleep(chance.random() * LONGEST / 2)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed = sum(ended(pid) != 0 for pid in pids)
            check(folder, 60.0 * (lives + 2))
            kills += killed
            tally["random kills"] += killed
        finish(folder, 60.0 * (lives + 3))
        shutil.rmtree(folder)


def live(folder: Path, ahead: float) -> None:
    Life(folder, ahead=ahead).go_on()


def check(folder: Path, ahead: float) -> None:
    life = Life(folder, ahead=ahead)
    life.check()
    life.close()


def finish(folder: Path, ahead: float) -> None:
    """The last one is left in peace: everything that was accepted comes to an end."""
    life = Life(folder, ahead=ahead)
    life.go_on()
    life.check()
    end = life.end()
    assert set(end.values()) <= DONE, end
    life.close()
