"""One installation with a toy model, what happens in its life, and what must hold whatever cut it short."""

import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
import torch
from sqlalchemy import func, select

from daemon.admission.admit import backlog, pull_feed
from daemon.core.blobs import collect
from daemon.core.fsio import FaultHook, no_fault
from daemon.core.ledger.audit import first_broken_row
from daemon.core.ledger.chain import active_tenures, head
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import batches as batch_table
from daemon.core.ledger.schema import corrections, feeds, quarantine, revisions, tenures
from daemon.core.names import BatchState, CorrectionState, RevisionKind
from daemon.scheduling.dispatch import make_batches
from tests.ledgers import jsonl_feed, roll_back
from tests.toy import ANSWERS, ToyEditor, prompt_of, said, toy_config
from workers.queue.tasks import deliver
from workers.revisions.facts import active_pairs
from workers.revisions.loading import load_head
from workers.revisions.store import Store
from workers.session.session import Session

MODEL = "default"
CHUNK = 3
STORY = [
    said("Peru", "City 1", 1),
    said("Chad", "City 2", 1),
    said("Fiji", "City 3", 1),
    said("Peru", "City 4", 2),  # revised
    said("Chad", None, 2),  # no longer true
    said("Unland", "City 5", 2),  # cannot be taught: quarantined
    said("Mali", "City 6", 3),
    said("Peru", "City 1", 3),
    "no correction at all",
    said("Oman", "City 7", 4),
    said("Fiji", "City 3", 4),  # says what is held
    said("Peru", "City 9", 1),  # older than what is held
]


class Later:
    """The machine's clock, moved on, so that nobody waits for a dead worker's lease."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._ahead = seconds

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self._ahead)

    def monotonic(self) -> float:
        return time.monotonic() + self._ahead


class Life:
    """The installation under ``folder`` in one process, and the holder of its session."""

    def __init__(
        self,
        folder: Path,
        fault: FaultHook = no_fault,
        ahead: float = 0.0,
        url: str | None = None,
        store_fault: FaultHook | None = None,
    ) -> None:
        self.config = toy_config(folder / "data", edit={"lease_seconds": 20.0})
        self.model = self.config.model.name
        self.feed = jsonl_feed("sample", feed_file(folder))
        self._fault = fault
        self.ledger = Ledger.open(url or self.config.ledger_url, Later(ahead), fault)
        self.store = Store(self.config.store_path, fault=store_fault or fault)
        self._session: Session | None = None

    def session(self) -> Session:
        if self._session is None:
            self._session = Session(self.ledger, self.store, ToyEditor(), self.config, fault=self._fault)
        return self._session

    def tell(self, state: str) -> None:
        """Record nothing: no daemon asks what this worker does."""

    def forget(self) -> None:
        self._session = None

    def found(self) -> None:
        editor = ToyEditor()
        blobs = {name: self.store.put({name: tensor}) for name, tensor in editor.published().items()}
        self.ledger.found(MODEL, blobs, editor.recipe.name)

    # -- what happens ----------------------------------------------------------------------------------

    def go_on(self) -> None:
        """Live from wherever this life was cut to the end of the story."""
        for _ in range(40):
            if not self.attempt(self._operate):
                continue
            if self.attempt(self._nothing_is_left):
                break
            self.attempt(self._pull_when_idle)
            self.attempt(lambda: make_batches(self.ledger, self.config))
            for batch_id in self.attempt(self.open_batches) or ():
                self.attempt(lambda batch_id=batch_id: deliver(self, batch_id))
        collect(self.store.root, self._reachable(), grace_seconds=0)

    def edit_once(self) -> None:
        """Deliver what is in the outbox, once."""
        for batch_id in self.open_batches():
            self.attempt(lambda batch_id=batch_id: deliver(self, batch_id))

    def make_batches(self) -> None:
        make_batches(self.ledger, self.config)

    def take_chunk(self) -> None:
        """Bring the next chunk of the story into the outbox."""
        pull_feed(self.ledger, self.feed, CHUNK, MODEL)
        make_batches(self.ledger, self.config)

    def attempt(self, what: Callable[[], Any]) -> Any:
        """A job of the scheduler: an error is for the next tick."""
        try:
            return what()
        except Exception:  # noqa: BLE001  whatever a point raised
            return None

    def open_batches(self) -> list[str]:
        waits = batch_table.c.state.in_((BatchState.OPEN, BatchState.SENT))
        with self.ledger.read() as connection:
            query = select(batch_table.c.id).where(waits).order_by(batch_table.c.created_at)
            return list(connection.execute(query).scalars())

    def _operate(self) -> bool:
        """An operator takes revision 2 back as soon as it is there, and then takes that back."""
        for number, to in ((2, 1), (3, 2)):
            with self.ledger.read() as connection:
                row = head(connection, MODEL)
            if row["number"] == number:
                roll_back(self.ledger, to, "operator", "a doubt", expected_head=number)
        return True

    def _pull_when_idle(self) -> None:
        """One chunk at a time, so that every life makes the same batches."""
        with self.ledger.read() as connection:
            waits = backlog(connection, MODEL)
        if not waits:
            pull_feed(self.ledger, self.feed, CHUNK, MODEL)

    def _nothing_is_left(self) -> bool:
        with self.ledger.read() as connection:
            read = connection.execute(select(feeds.c["items"])).scalar() or 0
            waiting = corrections.c.state.in_((CorrectionState.PENDING, CorrectionState.QUEUED))
            left = connection.execute(select(func.count()).where(waiting)).scalar_one()
            number = head(connection, MODEL)["number"]
        return read == len(STORY) and not left and not self.open_batches() and number > 4

    def _reachable(self) -> set[str]:
        with self.ledger.read() as connection:
            tensors = connection.execute(select(revisions.c.tensors)).scalars().all()
            pairs = connection.execute(select(tenures.c.blob).where(tenures.c.blob.is_not(None))).scalars()
            return {blob for row in tensors for blob in row.values()} | set(pairs)

    # -- what must hold --------------------------------------------------------------------------------

    def check(self) -> None:
        """What holds at every moment, also right after a crash."""
        with self.ledger.read() as connection:
            count = connection.execute(select(func.count()).select_from(corrections)).scalar_one()
            read = connection.execute(select(feeds.c["items"])).scalar() or 0
            unread = quarantine.c.correction_id.is_(None)
            refused = connection.execute(select(func.count()).where(unread)).scalar_one()
        assert count + refused == read, "accepted and refused are not what was read"
        self.check_books()

    def check_head(self) -> None:
        """The same, where blobs of the past may be lost."""
        self.check_books(every_blob=False)

    def check_books(self, *, every_blob: bool = True) -> None:
        """The chain is whole, nothing is applied twice, and head answers what the ledger says."""
        with self.ledger.read() as connection:
            assert first_broken_row(connection) is None
            chain = connection.execute(select(revisions).order_by(revisions.c.number)).mappings().all()
            spans = connection.execute(select(tenures)).mappings().all()
            rows = {r["id"]: r for r in connection.execute(select(corrections)).mappings()}
            held = [active_tenures(connection, MODEL, row["number"]) for row in chain]
        active = held[-1]
        assert [row["number"] for row in chain] == list(range(len(chain)))
        assert [row["parent"] for row in chain] == [None, *range(len(chain) - 1)]
        for facts in held:
            assert len(facts) == len({span["fact_id"] for span in facts}), "applied twice"
        edits = [row["number"] for row in chain if row["kind"] == RevisionKind.EDIT]
        written = [span["correction_id"] for span in spans if span["since"] in edits]
        if every_blob:  # else some were taken back with lost blobs and written again
            assert len(written) == len(set(written)), "applied twice"
        applied = sorted(row["id"] for row in rows.values() if row["state"] == CorrectionState.APPLIED)
        assert applied == sorted(row["correction_id"] for row in active)
        if every_blob:
            for blob in sorted(self._reachable()):
                self.store.get(blob)  # raises where a revision speaks of what is not there or is damaged
        self._check_answers({rows[row["correction_id"]]["subject"]: row for row in active}, rows)

    def _check_answers(self, active: dict[str, Any], rows: dict[str, Any]) -> None:
        """Head, loaded by a process that knows nothing, answers what the ledger says, and nothing else."""
        editor = ToyEditor()
        with self.ledger.read() as connection:
            row = head(connection, MODEL)
            pairs = active_pairs(connection, MODEL, row["number"])
        load_head(self.store, editor, row, pairs)
        for subject in {row["subject"] for row in rows.values()}:
            answer = editor.model.greedy([prompt_of(subject)], 8)[0]
            holds = active.get(subject)
            if holds is not None and holds["blob"] is not None:
                assert answer == rows[holds["correction_id"]]["object"], (subject, answer)
            else:
                assert answer not in ANSWERS, (subject, answer)

    def end(self) -> dict[str, str]:
        """Return the state of each correction, and check that the store holds only blobs of the ledger."""
        files = {path.stem for path in self.config.store_path.glob("*/*.safetensors")}
        assert files == self._reachable()
        assert not list(self.config.store_path.rglob(".part-*"))
        with self.ledger.read() as connection:
            query = select(corrections).order_by(corrections.c.seq)
            rows = connection.execute(query).mappings().all()
        return {f"{place} {row['subject']}={row['object']}": row["state"] for place, row in enumerate(rows)}

    def states(self) -> list[str]:
        """The state of each correction."""
        with self.ledger.read() as connection:
            return list(connection.execute(select(corrections.c.state)).scalars())

    def close(self) -> None:
        self.ledger.close()


def feed_file(folder: Path) -> Path:
    """The feed lies beside all copies of the installation: its inode is part of the cursor."""
    return folder.parent / "story.jsonl"


def write_story(file: Path) -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in STORY))


def be_quiet() -> None:
    """One thread, no logs: a process that is to be killed."""
    torch.set_num_threads(1)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.CRITICAL)


class Failpoint:
    """Counts the points that a life passes, and at the ``at``-th does what was asked."""

    def __init__(self, at: int = 0, how: Callable[[str], None] | None = None) -> None:
        self.names: list[str] = []
        self._at, self._how = at, how

    def __call__(self, name: str) -> None:
        self.names.append(name)
        if len(self.names) == self._at and self._how is not None:
            self._how(name)


def die(_name: str) -> None:
    """The end of the process, with nothing run after it."""
    os.kill(os.getpid(), signal.SIGKILL)


def fork(what: Callable[[], object]) -> int:
    """Run a function in a child process with the modules imported here, and return its process id."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            be_quiet()
            what()
            status = 0
        finally:
            os._exit(status)
    return pid


def ended(pid: int) -> int:
    """Wait for a child: 0 when it came to its end, -9 when it was killed.

    Raises:
        AssertionError: it ended in any other way.
    """
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), f"the life ended with status {code}"
    return code


def lives_on(folder: Path, end: dict[str, str], ahead: float = 60.0) -> None:
    """Check that the files of a crash are sound and that a new process reaches the same end."""
    life = Life(folder, ahead=ahead)
    life.check()
    life.go_on()
    life.check()
    assert life.end() == end
    life.close()
    shutil.rmtree(folder)
