"""One commit under strace: the kernel kills it, or refuses, at each single system call that writes.

Nothing in the code knows of this. Calls of SQLite are among them: what the ledger relies on is tested too.
"""

import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import absent, is_full
from tests.crash.conftest import close_whole, copy_of
from tests.crash.life import Life, ended, fork, lives_on

WRITING = ("write", "pwrite64", "fsync", "fdatasync", "rename", "openat", "unlink", "ftruncate", "mkdir")
REFUSALS = {
    "ENOSPC": ("write", "pwrite64", "fsync", "rename", "openat", "mkdir"),
    "EIO": ("write", "pwrite64", "fsync", "fdatasync", "rename"),
}


@pytest.fixture(scope="module")
def waiting(template: Path) -> Path:
    """An installation with one batch in the outbox: a revised fact, a retracted one, one that is refused."""
    folder = copy_of(template)
    life = Life(folder)
    life.take_chunk()
    life.edit_once()
    life.take_chunk()
    close_whole(life)
    return folder


def traced_edit(folder: Path, *options: str) -> tuple[int, str]:
    """Deliver the batch under strace and return the exit status and the trace."""
    ready, go = os.pipe(), os.pipe()

    def edit() -> None:
        life = Life(folder)
        life.session()
        os.write(ready[1], b"r")
        os.read(go[0], 1)
        life.edit_once()

    pid = fork(edit)
    os.read(ready[0], 1)
    log = folder / "strace.log"
    command = ["strace", "-p", str(pid), "-o", str(log), "-e", f"trace={','.join(WRITING)}", *options]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    line = tracer.stderr.readline()
    if "attached" not in line:
        os.write(go[1], b"g")
        ended(pid)
        tracer.wait()
        absent(f"strace may not trace here: {line.strip()}")
    os.write(go[1], b"g")
    code = ended(pid)
    tracer.stderr.close()
    tracer.wait(10)
    for end in (*ready, *go):
        os.close(end)
    return code, log.read_text()


@pytest.fixture(scope="module")
def calls(waiting: Path) -> Counter[str]:
    """How often a commit makes each of the calls."""
    if shutil.which("strace") is None:
        absent("no strace here: apt-get install strace")
    folder = copy_of(waiting)
    code, log = traced_edit(folder)
    assert code == 0
    shutil.rmtree(folder)
    found = Counter(re.findall(r"^(\w+)\(", log, re.MULTILINE))
    assert {"write", "pwrite64", "fsync", "fdatasync", "rename"} <= set(found)
    return found


def points(calls: Counter[str], names: tuple[str, ...], share: int) -> list[tuple[str, int]]:
    """Return system call and number of every point, or of a sample in the normal run."""
    all_of_them = [(name, at) for name in names for at in range(1, calls[name] + 1)]
    return all_of_them if is_full() else all_of_them[::share]


Reference = tuple[list[str], dict[str, str]]


@pytest.mark.timeout(900)
def test_killed_at_every_call(
    waiting: Path, calls: Counter[str], reference: Reference, tally: Counter[str]
) -> None:
    for name, at in points(calls, WRITING, 12):
        folder = copy_of(waiting)
        code, _ = traced_edit(folder, "-e", f"inject={name}:signal=SIGKILL:when={at}")
        assert code != 0, (name, at)
        lives_on(folder, reference[1])
        tally["killed at a system call"] += 1


@pytest.mark.timeout(900)
@pytest.mark.parametrize("error", list(REFUSALS))
def test_refused_at_every_call(
    waiting: Path, calls: Counter[str], reference: Reference, tally: Counter[str], error: str
) -> None:
    for name, at in points(calls, REFUSALS[error], 16):
        folder = copy_of(waiting)
        code, log = traced_edit(folder, "-e", f"inject={name}:error={error}:when={at}")
        assert code == 0, (name, at)
        assert "(INJECTED)" in log
        lives_on(folder, reference[1])
        tally[f"{error} at a system call"] += 1
