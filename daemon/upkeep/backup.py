"""Back up and restore the ledger by SQLite's online backup, and blobs by hard link or copy."""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import make_url

from daemon.core.blobs import blob_path, require_sound
from daemon.core.config.settings import Config
from daemon.core.errors import ConfigError, LedgerError, StoreError
from daemon.core.fsio import disk_errors, fsync_folder
from daemon.core.ledger.holdings import kept_blobs
from daemon.core.ledger.ledger import Ledger

LEDGER_FILE = "ledger.sqlite"
STORE_FOLDER = "store"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Copied:
    """How much was copied into a backup, or from one."""

    blobs: int
    linked: int
    unsound: tuple[str, ...] = ()


def back_up(config: Config, folder: Path, progress: Progress = lambda _done, _of: None) -> Copied:
    """Copy ledger and blobs into an empty or new ``folder`` while everything runs.

    The ledger is copied first: the blobs that it needs are in the store and stay there for the grace time.
    Raises ConfigError if the ledger is no file of this machine, and StoreError if the folder is not empty, a
    blob is missing or corrupt, or nothing can be written.
    """
    source = _ledger_file(config)
    if folder.exists() and any(folder.iterdir()):
        raise StoreError(f"{folder} is not empty", hint="name a new folder for each backup")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    copy_database(source, folder / LEDGER_FILE)
    needed = _needed(folder / LEDGER_FILE)
    linked = 0
    for done, blob in enumerate(needed, start=1):
        require_sound(config.store_path, blob)
        linked += _link_or_copy(blob_path(config.store_path, blob), blob_path(folder / STORE_FOLDER, blob))
        progress(done, len(needed))
    fsync_folder(folder)
    return Copied(len(needed), linked)


def restore(config: Config, folder: Path, progress: Progress = lambda _done, _of: None) -> Copied:
    """Restore a backup to where the configuration points, and replace damaged or missing blobs.

    An existing ledger is kept beside the restored one. Nothing may run meanwhile.
    Raises ConfigError if the ledger is no file of this machine, LedgerError if there is no backup in
    ``folder``, and CorruptBlobError if a blob of the backup is damaged itself; nothing was changed.
    """
    target = _ledger_file(config)
    if not (folder / LEDGER_FILE).is_file():
        raise LedgerError(f"there is no backup in {folder}", hint="errata backup makes one")
    needed = _needed(folder / LEDGER_FILE)
    for blob in needed:
        require_sound(folder / STORE_FOLDER, blob)
    linked = 0
    for done, blob in enumerate(needed, start=1):
        place = blob_path(config.store_path, blob)
        if not _is_sound(config.store_path, blob):
            place.unlink(missing_ok=True)
            linked += _link_or_copy(blob_path(folder / STORE_FOLDER, blob), place)
        progress(done, len(needed))
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for suffix in ("", "-wal", "-shm"):
            old = target.with_name(target.name + suffix)
            if old.exists():
                old.replace(target.with_name(f"{target.name}.before-restore{suffix}"))
    copy_database(folder / LEDGER_FILE, target)
    return Copied(len(needed), linked)


def copy_database(source: Path, target: Path) -> None:
    """Copy a SQLite database that may be in use, and check the copy.

    Raises LedgerError if source or copy is damaged, StoreError or DiskFullError if it cannot be written.
    """
    part = target.with_name(f".part-{target.name}")
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
        raise LedgerError(f"{source} cannot be copied: {error}") from error
    with disk_errors(target), part.open("rb") as stream:
        os.fsync(stream.fileno())
        part.chmod(0o600)
        part.replace(target)
        fsync_folder(target.parent)


def _needed(ledger_file: Path) -> list[str]:
    """The blobs that the ledger of a backup needs, read from a copy that is migrated first."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / LEDGER_FILE
        copy_database(ledger_file, copy)
        ledger = Ledger.open_migrated(f"sqlite:///{copy}")
        try:
            with ledger.read() as connection:
                return sorted(kept_blobs(connection))
        finally:
            ledger.close()


def _ledger_file(config: Config) -> Path:
    url = make_url(config.ledger_url)
    if url.get_backend_name() != "sqlite" or not url.database:
        raise ConfigError(
            f"a ledger on {url.get_backend_name()} is backed up by its own tools",
            hint="pg_dump for the ledger, then a copy of data_dir/store: in this order",
        )
    return Path(url.database)


def _is_sound(root: Path, blob: str) -> bool:
    try:
        require_sound(root, blob)
    except StoreError:
        return False
    return True


def _link_or_copy(source: Path, target: Path) -> bool:
    """Link a blob, or copy it to another file system, and return whether it is a link."""
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            target.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, target)
            with target.open("rb") as stream:
                os.fsync(stream.fileno())
            return False
        return True
