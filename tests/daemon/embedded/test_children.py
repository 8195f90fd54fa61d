"""Children of the supervisor end with it, are killed when they do not end, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from daemon.embedded.children import Child, end_leftover, stop_all
from tests.processes import descendants, has_ended, wait

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); "
SLEEP = "import time; time.sleep(600)"
FORK = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{SLEEP}'], close_fds=False); "
SUPERVISOR = (
    "import sys, time; from pathlib import Path; from daemon.embedded.children import Child\n"
    "child = Child('worker', [sys.executable, '-c', sys.argv[2]], {}, Path(sys.argv[1]))\n"
    "child.start(); print(child.pid, flush=True); time.sleep(600)"
)


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "run" / "worker.lock"


@pytest.fixture
def made() -> Iterator[list[Child]]:
    children: list[Child] = []
    yield children
    for child in children:
        child.kill()


def child_of(made: list[Child], lock: Path, code: str) -> Child:
    child = Child("worker", [sys.executable, "-c", code], dict(os.environ), lock, lock.parent / "log")
    lock.parent.mkdir(exist_ok=True)
    made.append(child)
    child.start()
    return child


def supervise(lock: Path, code: str) -> tuple[subprocess.Popen[bytes], int]:
    """A supervisor in a process of its own, and its child."""
    command = [sys.executable, "-c", SUPERVISOR, str(lock), code]
    supervisor = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert supervisor.stdout is not None
    child = next(int(line) for line in supervisor.stdout if line.strip().isdigit())
    wait(lambda: lock.read_text() != "", 10)  # the kernel knows what to do when the supervisor ends
    return supervisor, child


def test_a_child_ends_when_its_supervisor_is_killed(lock: Path) -> None:
    supervisor, child = supervise(lock, DEAF + SLEEP)
    assert not has_ended(child)
    supervisor.kill()
    supervisor.wait()
    wait(lambda: has_ended(child), 5)


def test_even_a_stopped_one(lock: Path) -> None:
    supervisor, child = supervise(lock, SLEEP)
    os.kill(child, signal.SIGSTOP)
    supervisor.kill()
    supervisor.wait()
    wait(lambda: has_ended(child), 5)


def test_what_an_earlier_supervisor_left_is_ended_before_the_next_one_starts(
    made: list[Child], lock: Path
) -> None:
    """A grandchild does not hear of the supervisor's end, and holds the lock."""
    supervisor, child = supervise(lock, FORK + SLEEP)
    wait(lambda: len(descendants(child)) == 1, 10)
    (leftover,) = descendants(child)
    supervisor.kill()
    supervisor.wait()
    wait(lambda: has_ended(child), 5)
    assert not has_ended(leftover)
    try:
        again = child_of(made, lock, SLEEP)
        wait(lambda: has_ended(leftover), 5)
        assert again.pid is not None
    finally:
        with suppress(ProcessLookupError):
            os.kill(leftover, signal.SIGKILL)


def test_a_number_from_before_is_not_killed(made: list[Child], lock: Path) -> None:
    """The file of a child that ended names a process id that is somebody else's by now."""
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:
        lock.parent.mkdir()
        lock.write_text(f"{stranger.pid}\n")
        end_leftover(lock, "worker")
        child_of(made, lock, SLEEP)
        assert stranger.poll() is None
        stranger.kill()


def test_children_that_do_not_end_are_killed_together_and_in_time(made: list[Child], lock: Path) -> None:
    children = [
        child_of(made, lock.with_name(name), DEAF + FORK + SLEEP) for name in ("first.lock", "second.lock")
    ]
    wait(lambda: all(len(descendants(child.pid or 0)) == 1 for child in children), 10)
    family = [pid for child in children for pid in (child.pid or 0, *descendants(child.pid or 0))]
    began = time.monotonic()
    stop_all(children, began + 1)
    assert time.monotonic() - began < 3
    wait(lambda: all(map(has_ended, family)), 2)
