"""The checks after a storm of faults."""

from collections.abc import Iterator
from pathlib import Path

from daemon.core.blobs import require_sound
from daemon.core.errors import ErrataError, StoreError
from daemon.core.ledger.chain import head
from daemon.core.ledger.ledger import Ledger
from tests.bench.faults.kinds import PATIENCE
from tests.bench.faults.place import Place
from tests.bench.faults.reader import base_hashes, broken_looks, mending_times, read_looks
from tests.bench.faults.record import Record, Witness
from tests.bench.ledger_checks import MODEL, Check, newest_won, once, sums, verdicts
from tests.bench.soak_sums import answers
from workers.queue.assemble import make_editor
from workers.revisions.recovery import rebuild
from workers.revisions.store import Store

MEND_SECONDS = 60.0  # within which a damaged published file must be whole again, whatever else happens
_SHOWN = 3


def all_checks(
    place: Place, record: Record, witness: Witness, calm: float | None, at_least: int
) -> Iterator[Check]:
    """Every check, in the order of the acceptance line."""
    ledger = place.ledger
    count = record.done.total()
    yield Check("enough faults were done", count >= at_least, f"{count} of at least {at_least}")
    took = "not within the bound" if calm is None else f"{calm:.1f} s after the last fault"
    yield Check("nothing waits any more", calm is not None, took)
    yield from sums(ledger, place.stream.written)
    yield from once(ledger)
    yield from verdicts(ledger)
    yield from newest_won(ledger)
    yield from looks(place, record)
    yield from witness.checks()
    yield from backups(record)
    yield from ends(record)
    yield from head_is_sound(place)


def looks(place: Place, record: Record) -> Iterator[Check]:
    """No look at the published folder was broken, and damage to it was mended."""
    seen = read_looks(place.looks)
    broken = broken_looks(seen, record.published, MEND_SECONDS)
    what = f"{len(seen)} looks, {len(broken)} broken: {broken[:_SHOWN]}"
    holds = bool(seen) and not broken and record.reader_lived
    yield Check("no look at the published folder was broken", holds, what)
    times = mending_times(seen, record.published, MEND_SECONDS)
    slow = [seconds for seconds in times if seconds >= MEND_SECONDS]
    what = (
        f"{len(record.published)} damaged, {len(times)} seen damaged, longest {max(times, default=0):.1f} s"
    )
    yield Check("damaged published files were mended", not slow, what)
    changed = _changed_base(place.config.model_path, place.base)
    yield Check("the base model is untouched", not changed, f"changed: {changed}")


def backups(record: Record) -> Iterator[Check]:
    """Every backup that was taken could be restored whole."""
    wrong = [text for text in record.backups if text]
    what = f"{len(record.backups)} restored, wrong: {wrong[:_SHOWN]}"
    yield Check("every backup is whole", not wrong, what)


def ends(record: Record) -> Iterator[Check]:
    """SIGTERM ended every part in time."""
    slow = [f"{name} {seconds:.1f} s" for name, seconds in record.ends if seconds >= PATIENCE]
    longest, whose = max(((seconds, name) for name, seconds in record.ends), default=(0.0, "none"))
    what = f"{len(record.ends)} times, longest {longest:.1f} s ({whose}), killed: {slow[:_SHOWN]}"
    yield Check("SIGTERM ended every part within 10 s", not slow, what)


def head_is_sound(place: Place) -> Iterator[Check]:
    """Head's blobs are sound, and it is what its facts amount to."""
    with place.ledger.read() as connection:
        row = head(connection, MODEL)
    unsound = [blob[:12] for blob in row["tensors"].values() if not _is_sound(place, blob)]
    yield Check("head's blobs are sound", not unsound, f"revision {row['number']}, unsound: {unsound}")
    try:
        yield from answers(place.ledger, place.config) if place.model is None else _solved(place)
    except ErrataError as error:
        yield Check("errata rebuild reproduces head", False, str(error))


def _solved(place: Place) -> Iterator[Check]:
    ledger: Ledger = place.ledger
    editor = make_editor(place.config)
    rebuilt = rebuild(ledger, Store(place.config.store_path), editor, MODEL, "bench", mend=False)
    yield Check("errata rebuild reproduces head", rebuilt.agrees, f"drift {rebuilt.drift}")


def _changed_base(model: Path, before: dict[str, str]) -> list[str]:
    after = base_hashes(model)
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _is_sound(place: Place, blob: str) -> bool:
    try:
        require_sound(place.config.store_path, blob)
    except StoreError:
        return False
    return True
