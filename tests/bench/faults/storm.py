"""The loop: corrections stream in, faults are drawn and undone, and then everything may calm down."""

import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import redis

from daemon.core.errors import ErrataError, NotFoundError
from daemon.core.ledger import switches
from daemon.core.ledger.chain import live
from daemon.core.ledger.publications import publications_by_place
from daemon.core.names import LIVE_LINK
from tests.bench.faults.kinds import PATIENCE, Fault, NothingToDoError
from tests.bench.faults.place import PARTS, Place
from tests.bench.faults.record import Record
from tests.bench.ledger_checks import MODEL, unjudged

_TICK = 0.1  # seconds
_UNDO_SECONDS = 90.0  # within which the last faults must be undone
_GUARD_EVERY = 5.0  # seconds between looks of the operator who resumes frozen edits

Tell = Callable[[float, float], None]
"""Called with the seconds that have passed and those there are."""


@dataclass(frozen=True)
class Pace:
    """How long it all lasts, lines a second, and seconds between two faults."""

    seconds: float
    rate: float
    every: float
    calm: float  # seconds within which everything must have come to an end


class Storm:
    """Draws faults from a shuffled pack of all kinds, so that each comes up equally often."""

    def __init__(
        self, place: Place, faults: list[Fault], record: Record, chance: random.Random, log: Path
    ) -> None:
        self._place, self._faults, self._record, self._chance = place, faults, record, chance
        self._pack: list[Fault] = []
        self._open: list[tuple[float, Fault]] = []
        self._guard_at = 0.0
        self._log = log
        self._warm = 0.0  # seconds from the start of all parts to the first publication
        self._spared: dict[str, float] = {}  # target -> until when nothing more happens to it

    def settle(self, seconds: float) -> None:
        """Wait until the first correction is published.

        Raises:
            TimeoutError: the parts do not work even without a fault.
        """
        self._place.stream.write_about_all()
        began = time.monotonic()
        deadline = began + seconds
        while not self._is_published(at_least=1):
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing was published; the logs lie in {self._place.folder}")
            time.sleep(0.2)
        self._warm = time.monotonic() - began

    def run(self, pace: Pace, tell: Tell) -> None:
        """Write lines and do faults for a while, then undo those that are open."""
        began = time.monotonic()
        sent, due = 0, began + pace.every
        while (now := time.monotonic()) < began + pace.seconds:
            count = int((now - began) * pace.rate) - sent
            self._place.stream.write(count)
            sent += count
            self._undo_due(now)
            self._watch(now)
            if now >= due:
                due += pace.every
                self._do_one(now)
            tell(now - began, pace.seconds)
            time.sleep(_TICK)
        until = time.monotonic() + _UNDO_SECONDS
        while self._open and time.monotonic() < until:
            self._undo_due(float("inf"))
            time.sleep(_TICK)

    def calm(self, seconds: float) -> float | None:
        """Write about every subject once more and return how long it took until nothing waits, or None.

        The worker begins anew, so that it must load all that it would otherwise remember.
        """
        self._place.parts["worker"].kill()
        for part in self._place.parts.values():
            part.start()
        self._place.stream.write_about_all()
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            self._watch(time.monotonic())
            with suppress(ErrataError):
                if self._place.all_ended() and self._all_judged() and self._is_published():
                    return time.monotonic() - began
            time.sleep(0.5)
        return None

    def end(self) -> None:
        """End every part by SIGTERM."""
        for name, part in self._place.parts.items():
            self._record.ends.append((name, part.terminate(PATIENCE)))
        self._record.reader_lived = self._place.reader.pid is not None
        self._place.reader.kill()

    def _do_one(self, now: float) -> None:
        """Do the next fault of the pack whose target has no other fault at this moment."""
        busy = {fault.target for _, fault in self._open}
        busy |= {target for target, until in self._spared.items() if now < until}
        for _ in range(2):
            fault = next((one for one in self._pack if one.target not in busy), None)
            if fault is not None:
                break
            self._pack += self._chance.sample(self._faults, len(self._faults))
        else:
            return
        self._pack.remove(fault)
        self._note(fault.name)
        try:
            fault.do()
        except NothingToDoError as error:
            self._note(f"{fault.name}: nothing to do: {error}")
            return
        except (ErrataError, redis.RedisError) as error:
            self._note(f"{fault.name}: refused: {error}")
            self._record.refused[fault.name] += 1
        self._record.done[fault.name] += 1
        self._open.append((now + self._chance.uniform(*fault.seconds), fault))

    def _undo_due(self, now: float) -> None:
        """Undo the faults whose time is over. What fails is tried again a second later."""
        for entry in [entry for entry in self._open if entry[0] <= now]:
            self._open.remove(entry)
            fault = entry[1]
            try:
                fault.undo()
            except (ErrataError, redis.RedisError) as error:
                self._note(f"{fault.name}: not undone: {error}")
                self._open.append((time.monotonic() + 1.0, fault))
                continue
            self._note(f"{fault.name}: over")
            if fault.target in PARTS:  # it begins anew, which takes its time: some of these times it works
                rest = self._warm * self._chance.uniform(0.2, 1.5)
                self._spared[fault.target] = time.monotonic() + rest

    def _watch(self, now: float) -> None:
        """Do what a supervisor and an operator on duty would: start parts again, and resume frozen edits."""
        busy = {fault.target for _, fault in self._open}
        for name, part in self._place.parts.items():
            status = part.revive() if name not in busy else None
            if status is not None:
                around = ", ".join(fault.name for _, fault in self._open) or "no other fault"
                self._record.died.append(f"{name} with status {status} during {around}")
                self._note(self._record.died[-1])
        if now < self._guard_at:
            return
        self._guard_at = now + _GUARD_EVERY
        with suppress(ErrataError):
            with self._place.ledger.read() as connection:
                frozen = switches.is_paused(connection, MODEL)
            if frozen:
                self._record.freezes += 1
                switches.resume(self._place.ledger, model=MODEL, feed=None, who="operator", reason="looked")

    def _note(self, what: str) -> None:
        """Add a line to the log of the storm, dated as the logs of the parts are."""
        moment = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._log.open("a", encoding="utf-8") as stream:
            stream.write(f"{moment} {what}\n")

    def _all_judged(self) -> bool:
        with self._place.ledger.read() as connection:
            return not unjudged(connection)

    def _is_published(self, at_least: int = 0) -> bool:
        with self._place.ledger.read() as connection, suppress(NotFoundError):
            row = live(connection, MODEL)
            places = publications_by_place(connection, MODEL)
            here = places[LIVE_LINK]["held"] if LIVE_LINK in places else None
            return row is not None and here == row["number"] >= at_least
        return False
