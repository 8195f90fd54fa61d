"""Backups that are taken in the middle of everything, and restored into a place of their own to see."""

import random
import shutil
from pathlib import Path

from daemon.core.blobs import require_sound
from daemon.core.config.settings import Config
from daemon.core.errors import CorruptBlobError, ErrataError, StoreError
from daemon.core.ledger.audit import first_broken_row
from daemon.core.ledger.holdings import kept_blobs
from daemon.core.ledger.ledger import Ledger
from daemon.upkeep.backup import back_up, restore
from tests.bench.faults.place import Place
from tests.bench.faults.record import Record


class Backup:
    """One backup at a time, on the disk of the store or beside it."""

    def __init__(self, place: Place, record: Record, chance: random.Random) -> None:
        self._place, self._record, self._chance = place, record, chance
        self._folder: Path | None = None
        self._left_out: set[str] = set()
        self._count = 0

    def take(self) -> None:
        """Back up the running site. Damaged blobs are no reason to refuse that, a full disk is."""
        self._count += 1
        root = self._chance.choice([self._place.disk.folder, self._place.folder])
        folder = root / "backups" / str(self._count)
        try:
            self._left_out = set(back_up(self._place.config, folder).unsound)
            self._folder = folder
        except CorruptBlobError as error:
            self._record.backups.append(f"refused: {error}")
        except ErrataError:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def verify(self) -> None:
        """Restore the backup, check its ledger and every blob, and delete both."""
        folder, self._folder = self._folder, None
        if folder is None:
            return
        target = self._place.folder / "restored"
        copy = self._place.config.model_copy(update={"data_dir": target, "database_url": None})
        try:
            self._record.backups.append(self._restore(copy, folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(target, ignore_errors=True)

    def _restore(self, config: Config, folder: Path) -> str:
        """What is wrong with a backup, or nothing."""
        try:
            restore(config, folder)
        except ErrataError as error:
            return f"not restored: {error}"
        return wrong_in(config, left_out=self._left_out, damaged=set(self._record.blobs))


def wrong_in(config: Config, *, left_out: set[str], damaged: set[str]) -> str:
    """What is wrong with a restored site, or nothing.

    A blob may be missing if the backup said so, and only because the bench had damaged it.
    """
    ledger = Ledger.open(config.ledger_url)
    try:
        with ledger.read() as connection:
            broken, needed = first_broken_row(connection), sorted(kept_blobs(connection))
    finally:
        ledger.close()
    if broken is not None:
        return f"row {broken} of the audit does not fit"
    missing = {blob for blob in needed if not _is_sound(config, blob)}
    if missing - left_out:
        return f"{len(missing - left_out)} blobs are missing and were not reported"
    return f"{len(left_out - damaged)} sound blobs were left out" if left_out - damaged else ""


def _is_sound(config: Config, blob: str) -> bool:
    try:
        require_sound(config.store_path, blob)
    except StoreError:
        return False
    return True
