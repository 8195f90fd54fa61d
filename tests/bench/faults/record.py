"""What a bench of faults did and saw: the faults by kind, damage, backups, rollbacks and ends of parts."""

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from sqlalchemy import select

from daemon.core.errors import ErrataError
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import revisions
from daemon.core.names import RevisionKind
from tests.bench.faults.reader import Damage, tensor_hash
from tests.bench.ledger_checks import MODEL, Check
from workers.revisions.store import Store

_EVERY = 0.5  # seconds between two looks for new revisions


@dataclass
class Record:
    """Everything that is to be reported or checked at the end."""

    done: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)  # by Errata, as in a full disk: no failure
    skipped: dict[str, str] = field(default_factory=dict)  # kind -> why it cannot be done here
    published: list[Damage] = field(default_factory=list)
    blobs: dict[str, str] = field(default_factory=dict)  # blob -> what was done to it
    backups: list[str] = field(default_factory=list)  # what was wrong with each one, or nothing
    ends: list[tuple[str, float]] = field(default_factory=list)  # part and seconds that SIGTERM took
    died: list[str] = field(default_factory=list)  # parts that ended by themselves
    freezes: int = 0
    reader_lived: bool = False  # to the end


class Witness:
    """Reads the tensors of every revision soon after it was made, and remembers their bytes as a hash."""

    def __init__(self, ledger: Ledger, store: Store) -> None:
        self._ledger, self._store = ledger, store
        self._seen: dict[int, str] = {}
        self._waiting: dict[int, dict[str, str]] = {}
        self._newest = -1
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="witness", daemon=True)

    def start(self) -> None:
        """Watch in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and look once more."""
        self._stop.set()
        self._thread.join()
        self._look()

    def checks(self) -> Iterator[Check]:
        """Every rollback has the very bytes of the revision that it went back to."""
        with self._ledger.read() as connection:
            rows = connection.execute(select(revisions).where(revisions.c.model == MODEL)).mappings().all()
        by_number = {row["number"]: row for row in rows}
        back = [row for row in rows if row["kind"] == RevisionKind.ROLLBACK]
        pairs = [(row["number"], row["content_of"]) for row in back]
        wrong = [one for one, other in pairs if by_number[one]["tensors"] != by_number[other]["tensors"]]
        read = [(one, other) for one, other in pairs if one in self._seen and other in self._seen]
        wrong += [one for one, other in read if self._seen[one] != self._seen[other]]
        what = f"{len(back)} rollbacks, {len(read)} compared byte for byte, different: {sorted(set(wrong))}"
        yield Check("every rollback is bit-equal", not wrong, what)

    def _watch(self) -> None:
        while not self._stop.wait(_EVERY):
            self._look()

    def _look(self) -> None:
        try:
            with self._ledger.read() as connection:
                newer = (revisions.c.model == MODEL) & (revisions.c.number > self._newest)
                query = select(revisions.c.number, revisions.c.tensors).where(newer)
                for row in connection.execute(query.order_by(revisions.c.number)).all():
                    self._waiting[row.number] = dict(row.tensors)
                    self._newest = row.number
        except ErrataError:
            return
        for number, tensors in list(self._waiting.items()):
            digest = self._digest(tensors)
            if digest is not None:
                self._seen[number] = digest
                del self._waiting[number]

    def _digest(self, tensors: dict[str, str]) -> str | None:
        """The hash of the tensors' bytes, or None while one of them is damaged."""
        digest = hashlib.sha256()
        try:
            for name, blob in sorted(tensors.items()):
                digest.update(tensor_hash(self._store.get(blob)[name]).encode())
        except (ErrataError, KeyError):
            return None
        return digest.hexdigest()
