"""Remove each guard of tests/bench/guards.py in a copy of the code and check that its test fails.

    python -m tests.bench.mutations                  all guards, a few minutes
    python -m tests.bench.mutations --only token     guards whose name contains a word
    python -m tests.bench.mutations --table          only the table of GUARANTEES.md

Prints a line for each guard. Exits with 1 when a test passed without its guard.
"""

import argparse
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.bench.guards import GUARDS, Guard

ROOT = Path(__file__).parents[2]
_COMMON = (
    "torch", "transformers", "safetensors.torch", "sqlalchemy", "alembic.command", "fastapi.testclient",
    "celery", "hypothesis.stateful", "pydantic_settings", "redis", "httpx", "typer.testing",
    "apscheduler.schedulers.background",
)  # fmt: skip
_LONGEST = 240  # seconds that a test may take
_COPIED = ("daemon", "workers", "tests", "pyproject.toml")


def table(guards: Sequence[Guard]) -> str:
    """Return guard, file and test as rows of Markdown."""
    rows = [f"| {one.name} | `{one.file}` | `{one.test.split('[')[0]}` |" for one in guards]
    return "\n".join(["| guard | where | test that fails without it |", "| --- | --- | --- |", *rows])


def prepare() -> None:
    """Import what every test needs, except Errata, because each test is a fork of this process."""
    for name in _COMMON:
        importlib.import_module(name)


def run_test(folder: Path, test: str) -> int:
    """Return pytest's status for a test in a folder, or -9 when it exceeded the time limit."""
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            status = _in_child(folder, test)
        finally:
            os._exit(status)
    until = time.monotonic() + _LONGEST
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # processes that the test left
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -signal.SIGKILL


def _in_child(folder: Path, test: str) -> int:
    os.setpgid(0, 0)
    os.chdir(folder)
    sink = os.open(folder / "output.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "daemon", "workers")]:
        del sys.modules[name]
    sys.path[:] = [str(folder), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT)]
    os.environ["PYTHONPATH"] = str(folder)
    return int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", f"--timeout={_LONGEST}", test]))


def try_without(folder: Path, guard: Guard) -> str:
    """Run the test of a guard without the guard and return the verdict."""
    file = folder / guard.file
    whole = file.read_text(encoding="utf-8")
    if whole.count(guard.old) != 1:
        return "is not where it was"
    file.write_text(whole.replace(guard.old, guard.new), encoding="utf-8")
    try:
        status = run_test(folder, guard.test)
    finally:
        file.write_text(whole, encoding="utf-8")
    if status in (1, -signal.SIGKILL):  # without a guard a test may wait for ever
        return "noticed"
    return "NOT NOTICED" if status == 0 else f"pytest ended with {status}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="", help="guards whose name contains this")
    parser.add_argument("--skip", type=int, default=0, help="leave out the first ones")
    parser.add_argument("--table", action="store_true", help="print the table of GUARANTEES.md")
    asked = parser.parse_args()
    chosen = [guard for guard in GUARDS if asked.only in guard.name][asked.skip :]
    if asked.table:
        print(table(chosen))
        return
    missed = 0
    with tempfile.TemporaryDirectory(prefix="errata-guards-") as name:
        folder = Path(name)
        for part in _COPIED:
            source = ROOT / part
            copy = shutil.copytree if source.is_dir() else shutil.copyfile
            copy(source, folder / part)
        prepare()
        for guard in chosen:
            began = time.monotonic()
            verdict = try_without(folder, guard)
            missed += verdict != "noticed"
            print(f"{verdict:12} {time.monotonic() - began:5.1f} s  {guard.name}  ({guard.test})", flush=True)
    print(f"{len(chosen)} guards, {missed} not noticed")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
