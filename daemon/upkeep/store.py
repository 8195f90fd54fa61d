"""Upkeep of the store: free space, a check of every needed blob, and deletion of the others."""

import time
from collections.abc import Callable

from sqlalchemy import Connection

from daemon.core.blobs import Swept, collect, require_sound
from daemon.core.config.settings import Config
from daemon.core.errors import DiskFullError, NotFoundError, StoreError
from daemon.core.ledger.chain import forget_tensors
from daemon.core.ledger.holdings import kept_blobs
from daemon.core.ledger.incidents import open_damage
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.publications import forget_folders, recorded_folders
from daemon.core.ledger.scrubs import insert_scrub, last_scrub
from daemon.core.log import get_logger
from daemon.core.published import find_flaw
from daemon.core.space import required_bytes
from daemon.views.figures import free_bytes

log = get_logger("errata.keeping")
Progress = Callable[[int, int], None]


def require_free_space(ledger: Ledger, config: Config) -> None:
    """Raise DiskFullError without space for an edit and its publication: no work that could not be saved."""
    with ledger.read() as connection:
        required = required_bytes(connection, config)
    free = free_bytes(config)
    if free < required:
        raise DiskFullError(
            f"{free >> 20} MiB free, edits and their publication need {required >> 20} MiB",
            hint="free space, or lower store.reserve_bytes; then the batches that wait resume",
        )


def collect_garbage(ledger: Ledger, config: Config) -> Swept:
    """Give up the tensors of old revisions, then delete the blobs that no kept revision needs."""
    with ledger.write() as connection:
        try:
            forget_tensors(connection, config.model.name, config.store.keep_revisions)
        except NotFoundError:
            return Swept(0, 0)
    with ledger.read() as connection:
        needed = kept_blobs(connection)
    if not config.store_path.is_dir():
        return Swept(0, 0)
    swept = collect(config.store_path, needed.keys(), config.store.grace_seconds)
    if swept.files:
        log.info("collected", files=swept.files, bytes=swept.freed_bytes)
    return swept


def is_scrub_due(connection: Connection, ledger: Ledger, config: Config) -> bool:
    """Whether the model's last scrub is at least ``store.scrub_seconds`` old."""
    last = last_scrub(connection, config.model.name)
    return last is None or (ledger.clock.now() - last).total_seconds() >= config.store.scrub_seconds


def scrub(ledger: Ledger, config: Config, progress: Progress = lambda _done, _of: None) -> dict[str, str]:
    """Compare every blob that a kept revision needs with its name, and return the unsound with the reason.

    Only the blobs of this model are in question, because another may have its own store. Each unsound one
    opens an incident of the newest revision that needs it.
    """
    start, model = time.monotonic(), config.model.name
    with ledger.read() as connection:
        needed = kept_blobs(connection, model)
    unsound: dict[str, str] = {}
    size = 0
    for done, blob in enumerate(sorted(needed), start=1):
        try:
            size += require_sound(config.store_path, blob)
        except StoreError as error:
            if _is_needed(ledger, model, blob):  # a collection may have deleted it meanwhile
                unsound[blob] = error.message
        progress(done, len(needed))
    with ledger.write() as connection:
        now = ledger.clock.now()
        insert_scrub(connection, now, model, len(needed), size, unsound, time.monotonic() - start)
        for blob, why in unsound.items():
            open_damage(connection, now, *needed[blob], why)
            log.error("unsound blob", blob=blob, why=why)
    return unsound


def scrub_published(ledger: Ledger, config: Config) -> dict[str, str]:
    """Compare every byte of the published folders with the ledger, and return what is wrong with each.

    The record of such a folder is deleted, and the publisher then writes the folder again.
    """
    model, root = config.model.name, config.published_path
    if not root.is_dir():
        return {}
    with ledger.read() as connection:
        recorded = recorded_folders(connection, model)
    hashes: dict[int, str] = {}
    flaws: dict[str, str] = {}
    for number, files in recorded.items():
        folder = root / f"r{number}"
        flaw = find_flaw(folder, files, hashes)
        if not flaw:
            continue
        with ledger.write() as connection:
            if recorded_folders(connection, model).get(number) != files:
                continue  # the publisher has written it again meanwhile
            forget_folders(connection, model, [number])
        flaws[folder.name] = flaw
        log.error("damaged published folder", folder=str(folder), flaw=flaw)
    return flaws


def _is_needed(ledger: Ledger, model: str, blob: str) -> bool:
    with ledger.read() as connection:
        return blob in kept_blobs(connection, model)
