"""Publish the live revision: write its folder, point the link ``live`` to it and notify the consumers.

``Publisher.tick`` compares the live revision of the ledger with what the link and each consumer have, and
does what is missing. A tick that fails leaves everything as it was, and the next one tries again.
"""

import secrets
import shutil
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import RowMapping

from daemon.core.clock import from_text
from daemon.core.config.settings import Config
from daemon.core.errors import ConsumerError, ErrataError
from daemon.core.fsio import TEMPORARY, disk_errors, fsync_folder
from daemon.core.ledger import audit
from daemon.core.ledger.chain import live
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.publications import publications_by_place, record_publication
from daemon.core.log import get_logger
from daemon.core.names import LIVE_LINK
from daemon.core.tracing import span
from workers.publishing.consumers.base import Consumer, Notice
from workers.publishing.export import Exporter
from workers.publishing.revision_facts import RevisionFacts, read_revision
from workers.revisions.store import Store

log = get_logger("errata.publish")
WHO = "publisher"
_PARTS = "parts"
_LONGEST_PAUSE = 60.0  # seconds between two tries of a consumer: it gets a revision a minute after it is back


class Publisher:
    """Keeps the published folder and the consumers at the live revision."""

    def __init__(self, ledger: Ledger, config: Config, consumers: Sequence[Consumer] = ()) -> None:
        self._ledger, self._model = ledger, config.model.name
        self._root, self._keep = config.published_path, config.publish.keep_folders
        self._exporter = Exporter(config.model_path, Store(config.store_path))
        self._consumers = {consumer.name: consumer for consumer in consumers}

    def tick(self) -> int | None:
        """Publish the live revision where that is missing, and return its number or None.

        Raises:
            StoreError: the folder cannot be written. The link ``live`` is unchanged.
        """
        with self._ledger.read() as connection:
            newest = live(connection, self._model)
            if newest is None:
                return None
            number = int(newest["number"])
            places = publications_by_place(connection, self._model)
            if not self._behind(places, number):
                return number
            revision = read_revision(connection, self._model, number)
        folder = self._root / f"r{number}"
        if _revision_at(places, LIVE_LINK) != number or not self._points_to(folder):
            self._publish(revision, folder)
        for consumer in self._consumers.values():
            self._notify(consumer, revision, places.get(consumer.name))
        return number

    def follow(self, stop: threading.Event, seconds: float) -> None:
        """Tick until ``stop`` is set, and once more then, so that the last live revision is published."""
        while True:
            ending = stop.is_set()
            try:
                self.tick()
            except ErrataError as error:
                log.warning("not published", code=error.code, error=str(error))
            if ending:
                return
            stop.wait(seconds)

    # -- the folder -----------------------------------------------------------------------------------

    def _publish(self, revision: RevisionFacts, folder: Path) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        with span("publish", revision=revision.number, model=self._model):
            if not folder.exists():
                self._exporter.publish(revision, folder, self._root / _PARTS)
            self._switch(folder)
        with self._ledger.write() as connection:
            now = self._ledger.clock.now()
            record_publication(connection, now, self._model, LIVE_LINK, revision.number, revision.number)
            details = {"content": revision.content, "path": str(folder)}
            target = f"{self._model}@{revision.number}"
            audit.record(connection, now, WHO, "publish", target, "it passed its probes", details)
        log.info("published", revision=revision.number, path=str(folder), facts=len(revision.facts))
        self._sweep(folder)

    def _switch(self, folder: Path) -> None:
        """Point ``live`` to a folder atomically."""
        temporary = self._root / f"{TEMPORARY}{secrets.token_hex(6)}-{LIVE_LINK}"
        with disk_errors(self._root / LIVE_LINK):
            temporary.symlink_to(folder.name)
            temporary.rename(self._root / LIVE_LINK)
            fsync_folder(self._root)

    def _points_to(self, folder: Path) -> bool:
        link = self._root / LIVE_LINK
        return link.is_symlink() and link.readlink().name == folder.name and folder.is_dir()

    def _sweep(self, current: Path) -> None:
        """Delete all but the newest few folders, and temporary files of interrupted work."""
        for left in self._root.glob(f"{TEMPORARY}*"):
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        older = [path for path in self._root.glob("r*") if path.name[1:].isdecimal() and path != current]
        older.sort(key=lambda path: int(path.name[1:]))
        for path in older[: max(0, len(older) - self._keep)]:
            shutil.rmtree(path)

    # -- the consumers --------------------------------------------------------------------------------

    def _behind(self, places: Mapping[str, RowMapping], number: int) -> bool:
        wanted = (LIVE_LINK, *self._consumers)
        return any(_revision_at(places, name) != number for name in wanted) or not self._points_to(
            self._root / f"r{number}"
        )

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


def _revision_at(places: Mapping[str, RowMapping], place: str) -> int | None:
    return places[place]["held"] if place in places else None


def _due(row: RowMapping, tries: int) -> datetime:
    """The time of the next try, 1, 2, 4 … seconds after the last one."""
    return from_text(row["at"]) + timedelta(seconds=min(2.0 ** (tries - 1), _LONGEST_PAUSE))
