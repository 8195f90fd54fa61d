"""Back up and restore the ledger by SQLite's online backup, and blobs as files of their own."""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import make_url

from daemon.core.blobs import blob_path, require_sound
from daemon.core.config.settings import Config
from daemon.core.errors import ConfigError, DiskFullError, LedgerError, StoreError
from daemon.core.fsio import copy_durably, disk_errors, fsync_folder, sha256_of
from daemon.core.ledger.database import open_engine
from daemon.core.ledger.holdings import kept_blobs
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.upgrade import upgrade

LEDGER_FILE = "ledger.sqlite"
STORE_FOLDER = "store"
_UNFINISHED = "unfinished.sqlite"  # the ledger gets its name when all blobs are there
_REPLACED = "before-restore"
Progress = Callable[[int, int], None]
Needed = Mapping[str, tuple[str, int]]
"""Blobs, and the newest revision that needs each."""


@dataclass(frozen=True)
class Copied:
    """How many blobs were copied, how many of them as hard links, and what is wrong with the others."""

    blobs: int
    linked: int
    unsound: Mapping[str, str]


def back_up(
    config: Config,
    folder: Path,
    progress: Progress = lambda _done, _of: None,
    *,
    hard_links: bool = False,
) -> Copied:
    """Copy ledger and blobs into an empty or new ``folder`` while everything runs.

    The ledger is copied first: the blobs that it needs are in the store and stay there for the grace time.
    Damaged and missing blobs are left out. With ``hard_links`` blobs share their bytes with the store, so
    that a fault of the disk damages both. Raises ConfigError if the ledger is no file of this machine or
    ``folder`` lies in ``data_dir``, and StoreError or DiskFullError if it is not empty or cannot be written.
    """
    source = _ledger_file(config)
    _require_target(config, folder)
    unfinished = folder / _UNFINISHED
    try:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        copy_database(source, unfinished)
        needed = _needed(unfinished)
        copied = _copy_out(config.store_path, folder / STORE_FOLDER, needed, progress, hard_links=hard_links)
        with disk_errors(folder):
            unfinished.rename(folder / LEDGER_FILE)
            fsync_folder(folder)
    except BaseException as error:
        shutil.rmtree(folder / STORE_FOLDER, ignore_errors=True)
        for part in (unfinished, _part_of(unfinished)):
            part.unlink(missing_ok=True)
        if isinstance(error, DiskFullError):
            raise DiskFullError(
                f"no space left for the backup in {folder}; what was written there is deleted again",
                hint="free space there, or name a folder on a larger disk",
            ) from error
        raise
    return copied


def restore(config: Config, folder: Path, progress: Progress = lambda _done, _of: None) -> Copied:
    """Restore a backup to where the configuration points, and replace damaged or missing blobs.

    An existing ledger is kept beside the restored one. Nothing may run meanwhile. Blobs that are sound
    neither in the store nor in the backup stay missing, and no rollback goes to a revision that needs one.
    Raises ConfigError if the ledger is no file of this machine, and LedgerError if there is no backup in
    ``folder`` or its ledger is damaged: then nothing was changed.
    """
    target = _ledger_file(config)
    _require_backup(folder)
    needed = _needed(folder / LEDGER_FILE)
    fresh = target.with_name(f".part-restored-{target.name}")
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        copy_database(folder / LEDGER_FILE, fresh)
        copied = _copy_in(folder / STORE_FOLDER, config.store_path, needed, progress)
        with disk_errors(target):
            _set_aside(target)
            fresh.replace(target)
            fsync_folder(target.parent)
    finally:
        fresh.unlink(missing_ok=True)
    return copied


def restore_blobs(
    ledger: Ledger, config: Config, folder: Path, progress: Progress = lambda _done, _of: None
) -> Copied:
    """Replace the damaged and missing blobs of the present ledger from a backup, while everything runs.

    Raises LedgerError if there is no backup in ``folder``, StoreError if a blob cannot be written.
    """
    _require_backup(folder)
    with ledger.read() as connection:
        needed = kept_blobs(connection)
    return _copy_in(folder / STORE_FOLDER, config.store_path, needed, progress)


def copy_database(source: Path, target: Path) -> None:
    """Copy a SQLite database that may be in use, and check the copy.

    Raises LedgerError if source or copy is damaged, StoreError or DiskFullError if it cannot be written.
    """
    part = _part_of(target)
    try:
        with (
            disk_errors(target),
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as reader,
            closing(sqlite3.connect(part)) as writer,
        ):
            reader.backup(writer)
            verdict = writer.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if verdict != "ok":
                raise LedgerError(f"{source} is damaged: {verdict}", hint="errata restore brings a backup")
            writer.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error as error:
        part.unlink(missing_ok=True)
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise DiskFullError(f"no space left for {target}", hint="free space on the disk") from error
        raise LedgerError(f"{source} cannot be copied: {error}") from error
    with disk_errors(target), part.open("rb") as stream:
        os.fsync(stream.fileno())
        part.chmod(0o600)
        part.replace(target)
        fsync_folder(target.parent)


def _part_of(target: Path) -> Path:
    return target.with_name(f".part-{target.name}")


def _require_target(config: Config, folder: Path) -> None:
    """Check that a folder is new or empty, and outlives the loss of what it is a backup of."""
    where = folder.resolve()
    for mine in (config.data_dir, config.store_path):
        if where.is_relative_to(mine.resolve()):
            raise ConfigError(
                f"{folder} lies in {mine}, which the backup is to outlive",
                hint="name a folder outside of it, best on another disk",
            )
    with disk_errors(folder):
        if os.path.lexists(folder) and not folder.is_dir():
            raise StoreError(f"{folder} is no folder", hint="name a new folder for each backup")
        there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if there and there <= {STORE_FOLDER, _UNFINISHED, _part_of(Path(_UNFINISHED)).name}:
        raise StoreError(
            f"{folder} holds a backup that was interrupted", hint="delete it, or name a new folder"
        )
    if there:
        raise StoreError(f"{folder} is not empty", hint="name a new folder for each backup")


def _require_backup(folder: Path) -> None:
    if (folder / LEDGER_FILE).is_file():
        return
    if (folder / _UNFINISHED).exists():
        raise LedgerError(f"the backup in {folder} was interrupted", hint="name another backup")
    raise LedgerError(f"there is no backup in {folder}", hint="errata backup makes one")


def _set_aside(ledger_file: Path) -> None:
    """Rename the files of the present ledger, and keep those that an earlier restore renamed."""
    end = f".{_REPLACED}"
    count = 1
    while ledger_file.with_name(ledger_file.name + end).exists():
        count += 1
        end = f".{_REPLACED}-{count}"
    for suffix in ("", "-wal", "-shm"):
        old = ledger_file.with_name(ledger_file.name + suffix)
        if old.exists():
            old.replace(ledger_file.with_name(f"{ledger_file.name}{end}{suffix}"))


def _needed(ledger_file: Path) -> Needed:
    """The blobs that the ledger of a backup needs, read from a copy that is migrated first."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / LEDGER_FILE
        copy_database(ledger_file, copy)
        ledger = Ledger(open_engine(f"sqlite:///{copy}"))
        try:
            # a lease in the copy may be of a process that runs, but it works on another ledger
            upgrade(ledger.engine, ledger.clock.now(), beside_others=True)
            with ledger.read() as connection:
                return kept_blobs(connection)
        finally:
            ledger.close()


def _copy_out(store: Path, target: Path, needed: Needed, progress: Progress, *, hard_links: bool) -> Copied:
    """Copy the sound blobs into a backup."""
    unsound: dict[str, str] = {}
    linked = 0
    for done, (blob, holder) in enumerate(sorted(needed.items()), start=1):
        if why := _flaw_of(store, blob):
            unsound[blob] = _reason(why, holder)
        else:
            source, copy = blob_path(store, blob), blob_path(target, blob)
            with disk_errors(copy):
                copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if hard_links and _link(source, copy):
                linked += 1
            else:
                copy_durably(source, copy)
                if sha256_of(copy) != blob:
                    copy.unlink()
                    unsound[blob] = _reason("it changed while it was copied", holder)
        progress(done, len(needed))
    _flush(target, needed)
    return Copied(len(needed) - len(unsound), linked, unsound)


def _copy_in(backup: Path, store: Path, needed: Needed, progress: Progress) -> Copied:
    """Copy from a backup what the store lacks, never as a link: the backup must outlive the store."""
    unsound: dict[str, str] = {}
    for done, (blob, holder) in enumerate(sorted(needed.items()), start=1):
        if _flaw_of(store, blob):
            if why := _flaw_of(backup, blob):
                unsound[blob] = _reason(why, holder)
            else:
                place = blob_path(store, blob)
                with disk_errors(place):
                    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                copy_durably(blob_path(backup, blob), place)
        progress(done, len(needed))
    _flush(store, needed)
    return Copied(len(needed) - len(unsound), 0, unsound)


def _reason(why: str, holder: tuple[str, int]) -> str:
    return f"{why} (needed by {holder[0]}@{holder[1]})"


def _flaw_of(root: Path, blob: str) -> str:
    """What is wrong with a blob, or nothing."""
    try:
        require_sound(root, blob)
    except StoreError as error:
        return error.message
    return ""


def _link(source: Path, target: Path) -> bool:
    """Give a blob a second name, and return whether the file systems allow that."""
    try:
        target.hardlink_to(source)
    except OSError:
        return False
    return True


def _flush(store: Path, blobs: Iterable[str]) -> None:
    """Flush the names of blobs to the disk."""
    with disk_errors(store):
        for folder in {blob_path(store, blob).parent for blob in blobs}:
            if folder.is_dir():
                fsync_folder(folder)
        if store.is_dir():
            fsync_folder(store)


def _ledger_file(config: Config) -> Path:
    url = make_url(config.ledger_url)
    if url.get_backend_name() != "sqlite" or not url.database:
        raise ConfigError(
            f"a ledger on {url.get_backend_name()} is backed up by its own tools",
            hint="pg_dump for the ledger, then a copy of data_dir/store: in this order",
        )
    return Path(url.database)
