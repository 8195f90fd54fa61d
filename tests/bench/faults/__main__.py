"""Draw random faults on the real parts while corrections stream in, and check that nothing came of them.

    python -m tests.bench.faults --minutes 15               on a toy in place of the language model
    python -m tests.bench.faults --minutes 3 --model PATH   on a real one, such as SmolLM2

Redis, the Celery worker, the daemon and the publisher are processes. They are killed, stopped and terminated,
Redis is emptied, disks fill and turn read-only, clocks step by an hour, files are damaged, an operator rolls
back and backs up, a feed floods, and a second daemon comes. A reader compares the published folder with the
ledger all the while. Prints the faults by kind and every check, and exits with 1 when a check fails.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from daemon.core.errors import ErrataError
from daemon.embedded.redis_server import locate_redis
from daemon.upkeep.backup import copy_database
from tests.bench.faults.checks import all_checks
from tests.bench.faults.disk import small_disk
from tests.bench.faults.kinds import all_faults
from tests.bench.faults.place import Place, disk_size
from tests.bench.faults.record import Record, Witness
from tests.bench.faults.storm import Pace, Storm, Tell
from tests.bench.ledger_checks import Check
from workers.progress import progress_bars
from workers.revisions.store import Store

RESULTS = Path(__file__).parents[1] / "results" / "faults.md"
_SETTLE_SECONDS = 900.0  # for the first publication: the statistics of a real model take minutes
_FAULTS_A_MINUTE = 100 / 15  # that a run must at least have on the toy
"""A run is worth something only if it had enough of them."""


@dataclass(frozen=True)
class Result:
    """What a run is to be remembered by."""

    minutes: float
    seed: int
    model: str
    faults: dict[str, int]
    refused: dict[str, int]
    skipped: dict[str, str]
    died: list[str]
    freezes: int
    checks: list[Check]

    @property
    def failed(self) -> list[str]:
        """The names of the checks that do not hold."""
        return [check.name for check in self.checks if not check.holds]


def run(asked: argparse.Namespace, folder: Path, tell: Tell) -> Result:
    """Do everything once in a folder."""
    chance, record = random.Random(asked.seed), Record()
    toy = asked.model is None
    pace = Pace(asked.minutes * 60, *((10.0, 4.0, 180.0) if toy else (0.5, 9.0, 400.0)))
    binary = locate_redis()
    if binary is None:
        sys.exit("no Redis server on this machine: apt-get install redis-server")
    with small_disk(folder / "disk", disk_size(asked.model)) as disk:
        place = Place(folder, binary, disk, asked.seed, asked.model)
        witness = Witness(place.ledger, Store(place.config.store_path))
        storm = Storm(place, all_faults(place, record, chance), record, chance, folder / "storm.log")
        try:
            place.start()
            storm.settle(_SETTLE_SECONDS)
            witness.start()
            storm.run(pace, tell)
            calm = storm.calm(pace.calm)
            storm.end()
            witness.stop()
            at_least = int(asked.minutes * _FAULTS_A_MINUTE) if toy else 1
            checks = list(all_checks(place, record, witness, calm, at_least))
        finally:
            place.close()
            _keep_ledger(place, folder)
    return Result(
        asked.minutes, asked.seed, str(asked.model or "toy"), dict(sorted(record.done.items())),
        dict(record.refused), record.skipped, record.died, record.freezes, checks,
    )  # fmt: skip


def _keep_ledger(place: Place, folder: Path) -> None:
    """Keep the ledger where the logs are, because the small disk goes."""
    try:
        copy_database(place.config.data_dir / "ledger.sqlite", folder / "ledger.sqlite")
    except ErrataError as error:
        (folder / "ledger.txt").write_text(f"the ledger could not be kept: {error}")


def show(result: Result, console: Console) -> None:
    """Print the faults by kind and every check."""
    table = Table("fault", "done", "refused", title=f"{sum(result.faults.values())} faults")
    for name, count in result.faults.items():
        table.add_row(name, str(count), str(result.refused.get(name, "")))
    for name, why in result.skipped.items():
        table.add_row(name, "skipped", why)
    console.print(table)
    for text in result.died:
        console.print(f"ended by itself: {text}", highlight=False, markup=False)
    if result.freezes:
        console.print(f"edits were frozen and resumed {result.freezes} times")
    for check in result.checks:
        line = f"{'ok  ' if check.holds else 'FAIL'}  {check.name}: {check.what}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def to_markdown(result: Result) -> str:
    """The result as a page of tests/bench/results."""
    rows = [f"| {name} | {count} |" for name, count in result.faults.items()]
    rows += [f"| {name} | skipped: {why} |" for name, why in result.skipped.items()]
    checks = [f"| {c.name} | {'yes' if c.holds else 'NO'} | {c.what} |" for c in result.checks]
    command = f"python -m tests.bench.faults --minutes {result.minutes:g} --seed {result.seed}"
    return "\n".join([
        "# Faults", "", f"`{command}` on {Path(result.model).name}:", "",
        "| fault | done |", "| --- | --- |", *rows, "",
        "| check | holds | figures |", "| --- | --- | --- |", *checks, "",
    ])  # fmt: skip


def main() -> None:
    asked = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended before its time"))
    folder = Path(tempfile.mkdtemp(prefix="errata-faults-"))
    with _progress() as tell:
        result = run(asked, folder, tell)
    if asked.json:
        document: dict[str, Any] = asdict(result) | {"failed": result.failed}
        document["checks"] = [check._asdict() for check in result.checks]
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        show(result, Console())
    if asked.write:
        asked.write.write_text(to_markdown(result), encoding="utf-8")
    if result.failed:
        sys.exit(f"failed: {', '.join(result.failed)}\nthe ledger and the logs of all parts lie in {folder}")
    shutil.rmtree(folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0, help="length of the storm")
    parser.add_argument("--model", type=Path, help="model folder (none: a toy)")
    parser.add_argument("--seed", type=int, default=1, help="which faults come when")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument(
        "--write",
        type=Path,
        nargs="?",
        const=RESULTS,
        help="also write it as Markdown (to results/faults.md)",
    )
    return parser.parse_args()


@contextmanager
def _progress() -> Iterator[Tell]:
    """A bar on a terminal, else nothing."""
    with progress_bars(Console(stderr=True), transient=True) as step:
        yield lambda passed, total: step("seconds", int(passed), int(total))


if __name__ == "__main__":
    main()
