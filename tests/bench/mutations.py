"""Take out each guard of tests/bench/guards.py, one at a time, in a copy of the code: its test must fail.

    python -m tests.bench.mutations                  all of them, about five minutes
    python -m tests.bench.mutations --only token     those whose name contains a word
    python -m tests.bench.mutations --table          the table of GUARANTEES.md, nothing is run

Prints a line a guard; ends with 1 when a test did not notice that its guard was gone.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.bench.guards import GUARDS, Guard

ROOT = Path(__file__).parents[2]
_COPIED = ("daemon", "workers", "tests", "pyproject.toml")


def table(guards: Sequence[Guard]) -> str:
    """Guard, file and test as rows of markdown."""
    rows = [f"| {one.name} | `{one.file}` | `{one.test.split('[')[0]}` |" for one in guards]
    return "\n".join(["| guard | where | test that fails without it |", "| --- | --- | --- |", *rows])


def run_test(folder: Path, test: str) -> tuple[int, str]:
    """Pytest's status, and the end of what it said."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout=120", test]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    return done.returncode, done.stdout[-300:]


def try_without(folder: Path, guard: Guard) -> str:
    """Take the guard out, run its test, put it back; what the test said of that."""
    file = folder / guard.file
    whole = file.read_text(encoding="utf-8")
    if whole.count(guard.old) != 1:
        return "is not where it was"
    file.write_text(whole.replace(guard.old, guard.new), encoding="utf-8")
    try:
        status, said = run_test(folder, guard.test)
    except subprocess.TimeoutExpired:
        return "noticed"  # it waits for what never comes
    finally:
        file.write_text(whole, encoding="utf-8")
    return {0: "NOT NOTICED", 1: "noticed"}.get(status, f"pytest ended with {status}: {said}")


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
        for guard in chosen:
            began = time.monotonic()
            verdict = try_without(folder, guard)
            missed += verdict != "noticed"
            print(f"{verdict:12} {time.monotonic() - began:5.1f} s  {guard.name}  ({guard.test})", flush=True)
    print(f"{len(chosen)} guards, {missed} not noticed")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
