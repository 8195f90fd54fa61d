"""The kinds of faults. Each is a small object with a name, what it does, and what undoes it."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from daemon.core.ledger import switches
from daemon.core.ledger.chain import head
from daemon.core.ledger.holdings import kept_blobs
from daemon.core.names import LIVE_LINK
from daemon.watch.rollback import roll_back
from tests.bench.faults.backups import Backup
from tests.bench.faults.place import NOISE, PARTS, SECOND, Place
from tests.bench.faults.reader import Damage
from tests.bench.faults.record import Record
from tests.bench.ledger_checks import MODEL
from workers.revisions.store import Store

HOUR = 3600
PATIENCE = 10.0  # seconds within which SIGTERM must end a part
_FLOOD = 700  # lines, more than the noisy feed may have refused within an hour
_GARBAGE = (
    "no correction at all",
    "{",
    '{"subject": 1}',
    '[[["deep"]]]',
    '{"subject": "Land 1"}',
    "\x00\x01",
)


class NothingToDoError(Exception):
    """The fault cannot be done at this moment, such as damage before anything is there."""


def nothing() -> None:
    """Undo a fault that leaves nothing to undo."""


@dataclass(frozen=True)
class Fault:
    """One kind of fault. Of two with the same ``target`` one waits for the end of the other."""

    name: str
    target: str
    do: Callable[[], None]
    undo: Callable[[], None] = nothing
    seconds: tuple[float, float] = (0.5, 3.0)


def all_faults(place: Place, record: Record, chance: random.Random) -> list[Fault]:
    """Every kind of fault that this machine can have. ``record`` says why others are skipped."""
    faults = [*part_faults(place, record), *redis_faults(place), *damage_faults(place, record, chance)]
    faults += operator_faults(place, record, chance)
    faults += [flood(place, chance), second_daemon(place, record)]
    if place.has_clocks:
        faults += clock_faults(place, chance)
    else:
        record.skipped["clock steps"] = "no C compiler for the library that steps the clock"
    if place.disk.why_not:
        record.skipped["full and read-only disks"] = place.disk.why_not
    else:
        faults += disk_faults(place)
    return faults


def part_faults(place: Place, record: Record) -> Iterator[Fault]:
    """SIGKILL, SIGSTOP and SIGTERM of each part."""
    for name in PARTS:
        part = place.parts[name]

        def terminate(name: str = name) -> None:
            record.ends.append((name, place.parts[name].terminate(PATIENCE)))

        yield Fault(f"{name} killed", name, part.kill, part.start)
        stop, resume = partial(part.send, signal.SIGSTOP), partial(part.send, signal.SIGCONT)
        yield Fault(f"{name} stopped", name, stop, resume, (2.0, 8.0))  # longer than its lease
        yield Fault(f"{name} terminated", name, terminate, part.start)
    yield Fault("child of the worker killed", "worker", partial(_kill_child, place))


def redis_faults(place: Place) -> Iterator[Fault]:
    """Redis killed, flushed and without memory."""

    def limit(value: str) -> None:
        with place.redis as client:
            client.config_set("maxmemory", value)

    def flush() -> None:
        with place.redis as client:
            client.flushall()

    yield Fault("redis killed", "redis", place.kill_redis, place.server.start)
    yield Fault("redis flushed", "redis", flush)
    yield Fault("redis out of memory", "redis", partial(limit, "1"), partial(limit, "0"), (1.0, 5.0))


def disk_faults(place: Place) -> Iterator[Fault]:
    """ENOSPC for everything, EROFS for the store and for the published folder."""
    yield Fault("disk full", "disk", place.disk.fill, place.disk.empty, (1.0, 5.0))
    folders = {"store": place.config.store_path, "published folder": place.config.published_path}
    for name, folder in folders.items():
        lock, unlock = partial(_lock, place, folder), partial(place.disk.lock, folder, read_only=False)
        yield Fault(f"{name} read-only", "disk", lock, unlock, (1.0, 5.0))


def clock_faults(place: Place, chance: random.Random) -> Iterator[Fault]:
    """The clock of one part, or of all, an hour ahead or behind for a while."""
    for name, seconds in (("clock an hour ahead", HOUR), ("clock an hour behind", -HOUR)):

        def step(seconds: int = seconds) -> None:
            every = list(place.clocks.values())
            for clock in every if chance.random() < 0.5 else [chance.choice(every)]:
                clock.step(seconds)

        def right() -> None:
            for clock in place.clocks.values():
                clock.step(0)

        yield Fault(name, "clock", step, right, (2.0, 10.0))


def damage_faults(place: Place, record: Record, chance: random.Random) -> Iterator[Fault]:
    """A blob of the store, or a file of the published folder, flipped, cut or deleted."""
    for name, damage in (("flipped", flip), ("truncated", truncate), ("deleted", Path.unlink)):

        def blob(name: str = name, damage: Callable[[Path], None] = damage) -> None:
            path = _some_blob(place, chance)
            record.blobs[path.stem] = name
            _damage(path, damage)

        def file(name: str = name, damage: Callable[[Path], None] = damage) -> None:
            path = _some_published(place, chance)
            record.published.append(Damage(time.monotonic(), f"{path.parent.name}/{path.name} {name}"))
            _damage(path, damage)

        yield Fault(f"blob {name}", "store", blob, seconds=(0.5, 1.0))
        yield Fault(f"published file {name}", "published", file, seconds=(3.0, 5.0))


def operator_faults(place: Place, record: Record, chance: random.Random) -> Iterator[Fault]:
    """Rollbacks by an operator, and a backup that is verified some seconds later."""

    def roll(*, last_good: bool) -> None:
        with place.ledger.read() as connection:
            number = int(head(connection, MODEL)["number"])
        to = None if last_good else max(0, number - chance.randrange(1, 5))
        roll_back(
            place.ledger, MODEL, place.config.store_path, to=to, last_good=last_good, who="operator",
            reason="a doubt",
        )  # fmt: skip

    backup = Backup(place, record, chance)
    yield Fault("rollback to a revision", "operator", partial(roll, last_good=False))
    yield Fault("rollback to the last good", "operator", partial(roll, last_good=True))
    yield Fault("backup", "backup", backup.take, backup.verify, (2.0, 6.0))


def flood(place: Place, chance: random.Random) -> Fault:
    """Hundreds of lines of garbage by one feed, which an operator resumes after it paused itself."""

    def pour() -> None:
        with place.noise.open("a", encoding="utf-8") as stream:
            stream.writelines(f"{chance.choice(_GARBAGE)}\n" for _ in range(_FLOOD))

    def resume() -> None:
        switches.resume(place.ledger, model=MODEL, feed=NOISE, who="operator", reason="looked at it")

    return Fault("flood of garbage by one feed", "noise", pour, resume, (3.0, 8.0))


def second_daemon(place: Place, record: Record) -> Fault:
    """Another daemon on the same ledger for a while."""

    def end() -> None:
        record.ends.append((SECOND, place.second.terminate(PATIENCE)))

    return Fault("second daemon", SECOND, place.second.start, end, (6.0, 12.0))


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    with path.open("r+b") as stream:
        at = path.stat().st_size * 2 // 3
        stream.seek(at)
        byte = stream.read(1)
        stream.seek(at)
        stream.write(bytes([byte[0] ^ 0x10]))


def truncate(path: Path) -> None:
    """Cut a file in half."""
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)


def _damage(path: Path, damage: Callable[[Path], None]) -> None:
    try:
        damage(path)
    except (OSError, IndexError) as error:  # deleted meanwhile, read-only, or empty
        raise NothingToDoError(str(error)) from error


def _lock(place: Place, folder: Path) -> None:
    for _ in range(50):  # while nobody writes into it
        with suppress(OSError):
            place.disk.lock(folder, read_only=True)
            return
        time.sleep(0.02)
    raise NothingToDoError("files are written all the time")


def _kill_child(place: Place) -> None:
    """Kill the pool's child, which has the model and holds the lease."""
    pid = place.parts["worker"].pid
    children = Path(f"/proc/{pid}/task/{pid}/children")
    if pid is None or not children.exists() or not (ids := children.read_text().split()):
        raise NothingToDoError("the worker has no child yet")
    with suppress(ProcessLookupError):
        os.kill(int(ids[0]), signal.SIGKILL)


def _some_blob(place: Place, chance: random.Random) -> Path:
    """A blob that a kept revision needs."""
    with place.ledger.read() as connection:
        needed = sorted(kept_blobs(connection))
    if not needed:
        raise NothingToDoError("there are no blobs yet")
    return Store(place.config.store_path).path(chance.choice(needed))


def _some_published(place: Place, chance: random.Random) -> Path:
    """A file behind ``live``, except the card, which nobody can compare with the ledger."""
    link = place.config.published_path / LIVE_LINK
    try:
        folder = link.parent / link.readlink()
        files = sorted(path for path in folder.iterdir() if path.name != "README.md")
    except OSError as error:
        raise NothingToDoError("nothing is published yet") from error
    if not files:
        raise NothingToDoError("the folder is gone")
    return chance.choice(files)
