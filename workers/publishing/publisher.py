"""Publish the live revision: write its folder, point the link ``live`` to it and notify the consumers.

``Publisher.tick`` compares the live revision of the ledger with what the link and each consumer have, and
does what is missing. It also compares each published folder with what the ledger recorded of its files, and
writes a changed one again. A tick that fails leaves everything as it was, and the next one tries again.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from sqlalchemy import RowMapping

from daemon.core.clock import from_text
from daemon.core.config.settings import Config
from daemon.core.errors import ConsumerError, CorruptBlobError, ErrataError, NotFoundError
from daemon.core.fsio import disk_errors
from daemon.core.ledger import audit
from daemon.core.ledger.chain import live
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.publications import (
    forget_folders,
    publications_by_place,
    record_folder,
    record_publication,
    recorded_folders,
)
from daemon.core.log import get_logger
from daemon.core.names import LIVE_LINK
from daemon.core.published import Files, find_flaw
from daemon.core.tracing import span
from workers.publishing.consumers.base import Consumer, Notice
from workers.publishing.export import Exporter
from workers.publishing.parts import Parts, unused_parts
from workers.publishing.place import Place
from workers.publishing.revision_facts import RevisionFacts, read_revision
from workers.revisions.store import Store

log = get_logger("errata.publish")
WHO = "publisher"
_LONGEST_PAUSE = 60.0  # seconds between two tries of a consumer: it gets a revision a minute after it is back


class Publisher:
    """Keeps the published folders and the consumers at the live revision."""

    def __init__(self, ledger: Ledger, config: Config, consumers: Sequence[Consumer] = ()) -> None:
        self._ledger, self._model = ledger, config.model.name
        self._root, self._keep = config.published_path, config.publish.keep_folders
        self._place = Place(self._root)
        self._base, self._store = config.model_path, Store(config.store_path)
        self._consumers = {consumer.name: consumer for consumer in consumers}
        self._said: dict[str, str] = {}  # the last failure of each part of the work, logged once

    def tick(self) -> int | None:
        """Publish the live revision where that is missing, and return its number or None.

        Raises:
            StoreError, ModelError: the folder cannot be written. The link ``live`` is unchanged.
            UnavailableError: another publisher is at work in the same place.
        """
        with self._ledger.read() as connection:
            newest = live(connection, self._model)
            places = publications_by_place(connection, self._model)
            recorded = recorded_folders(connection, self._model)
        if newest is None:
            return None
        number = int(newest["number"])
        known = {*self._place.numbers(), number}
        flaws = {one: flaw for one in known if (flaw := self._flaw(one, recorded))}
        for older in sorted(flaws.keys() - {number}, reverse=True):
            with self._logged(f"r{older}"):
                self._mend_older(older, flaws[older])
        published = _revision_at(places, LIVE_LINK) == number
        if number in flaws or not published or not self._place.points_to(self._place.folder(number)):
            why = f"its folder {flaws.get(number, 'lost its link')}" if published else "it passed its probes"
            self._publish(number, why, rewrite=number in flaws)
        for consumer in self._consumers.values():
            held = places.get(consumer.name)
            if _revision_at(places, consumer.name) != number:
                self._notify(consumer, self._read(number), held)
        return number

    def follow(self, stop: threading.Event, seconds: float) -> None:
        """Tick until ``stop`` is set, and once more then, so that the last live revision is published."""
        while True:
            ending = stop.is_set()
            with self._logged("live"):
                self.tick()
            if ending:
                return
            stop.wait(seconds)

    @contextmanager
    def _logged(self, what: str) -> Iterator[None]:
        """Log why some work failed, once for each reason, and go on without it."""
        try:
            with disk_errors(self._root):
                yield
        except ErrataError as error:
            if self._said.get(what) != str(error):
                log.warning("not published", what=what, code=error.code, error=str(error))
            self._said[what] = str(error)
        else:
            self._said.pop(what, None)

    # -- the folders ----------------------------------------------------------------------------------

    def _flaw(self, number: int, recorded: Mapping[int, Files]) -> str:
        """What is wrong with the folder of a revision, by a quick look."""
        if number not in recorded:
            return "is not recorded"
        return find_flaw(self._place.folder(number), recorded[number])

    def _publish(self, number: int, why: str, *, rewrite: bool) -> None:
        """Write the folder of the live revision, unless it is sound, and point the link to it."""
        folder = self._place.folder(number)
        with self._place.lock(), disk_errors(self._root):
            revision = self._read(number)
            with span("publish", revision=number, model=self._model):
                files = self._place.write(number, partial(self._build, revision)) if rewrite else None
                self._place.point_to(folder)
            with self._ledger.write() as connection:
                now = self._ledger.clock.now()
                if files is not None:
                    record_folder(connection, self._model, number, files)
                record_publication(connection, now, self._model, LIVE_LINK, number, number)
                details = {"content": revision.content, "path": str(folder)}
                audit.record(connection, now, WHO, "publish", f"{self._model}@{number}", why, details)
            log.info("published", revision=number, path=str(folder), facts=len(revision.facts), why=why)
            self._sweep(number)

    def _mend_older(self, number: int, flaw: str) -> None:
        """Write an older folder again, or delete what is none or cannot be written any more."""
        folder = self._place.folder(number)
        with self._place.lock():
            try:
                _require_folder(folder)
                files = self._place.write(number, partial(self._build, self._read(number)))
            except (NotFoundError, CorruptBlobError) as error:
                if self._place.points_to(folder):
                    raise
                self._place.discard(folder)
                log.warning("deleted a published folder", revision=number, flaw=flaw, error=str(error))
                return
            with self._ledger.write() as connection:
                record_folder(connection, self._model, number, files)
        log.warning("mended a published folder", revision=number, flaw=flaw)

    def _build(self, revision: RevisionFacts, target: Path) -> Files:
        with self._ledger.read() as connection:
            recorded = recorded_folders(connection, self._model)
        return Exporter(self._base, self._store).publish(revision, target, Parts(self._place.parts, recorded))

    def _read(self, number: int) -> RevisionFacts:
        with self._ledger.read() as connection:
            return read_revision(connection, self._model, number)

    def _sweep(self, current: int) -> None:
        """Delete the older folders, what interrupted work left, and the records and parts of neither."""
        self._discard(self._place.outdated(current, self._keep))
        there = set(self._place.numbers())
        with self._ledger.write() as connection:
            recorded = recorded_folders(connection, self._model)
            forget_folders(connection, self._model, recorded.keys() - there)
        kept = {number: files for number, files in recorded.items() if number in there}
        self._discard(unused_parts(self._place.parts, kept))

    def _discard(self, paths: Iterable[Path]) -> None:
        for path in paths:
            with self._logged(f"delete {path.name}"):
                self._place.discard(path)

    # -- the consumers --------------------------------------------------------------------------------

    def _notify(self, consumer: Consumer, revision: RevisionFacts, row: RowMapping | None) -> None:
        """Deliver a revision to a consumer that lacks it, unless it pauses after a failure."""
        current = row["held"] if row is not None else None
        if current == revision.number:
            return
        tries = int(row["attempts"]) if row is not None and row["revision"] == revision.number else 0
        if row is not None and tries and self._ledger.clock.now() < _due(row, tries):
            return
        message = self._deliver(consumer, Notice.of(revision, self._root / LIVE_LINK, since=current))
        with self._ledger.write() as connection:
            now, now_at = self._ledger.clock.now(), current if message else revision.number
            place = (self._model, consumer.name)
            record_publication(connection, now, *place, revision.number, now_at, tries + 1, message)

    def _deliver(self, consumer: Consumer, notice: Notice) -> str:
        """Deliver a notice and return the error message, empty on success."""
        try:
            with span("deliver", revision=notice.revision, consumer=consumer.name):
                consumer.deliver(notice)
        except ConsumerError as error:
            log.warning("not delivered", consumer=consumer.name, revision=notice.revision, error=str(error))
            return str(error)
        log.info("delivered", consumer=consumer.name, revision=notice.revision)
        return ""


def _require_folder(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        raise NotFoundError(f"{path} is no folder")


def _revision_at(places: Mapping[str, RowMapping], place: str) -> int | None:
    return places[place]["held"] if place in places else None


def _due(row: RowMapping, tries: int) -> datetime:
    """The time of the next try, 1, 2, 4 … seconds after the last one."""
    return from_text(row["at"]) + timedelta(seconds=min(2.0 ** (tries - 1), _LONGEST_PAUSE))
