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
from daemon.core.ledger.scrubs import insert_scrub, last_scrub
from daemon.core.log import get_logger
from daemon.views.figures import free_bytes

log = get_logger("errata.keeping")
Progress = Callable[[int, int], None]


def require_free_space(config: Config) -> None:
    """Raise DiskFullError if less than ``store.reserve_bytes`` are free: no work that could not be saved."""
    free = free_bytes(config)
    if free < config.store.reserve_bytes:
        raise DiskFullError(
            f"{free >> 20} MiB free, edits need {config.store.reserve_bytes >> 20} MiB",
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
    """Whether the last scrub is at least ``store.scrub_seconds`` old."""
    last = last_scrub(connection)
    return last is None or (ledger.clock.now() - last).total_seconds() >= config.store.scrub_seconds


def scrub(ledger: Ledger, config: Config, progress: Progress = lambda _done, _of: None) -> dict[str, str]:
    """Compare every blob that a kept revision needs with its name, and return the unsound with the reason.

    Each of these opens an incident of the newest revision that needs it.
    """
    start = time.monotonic()
    with ledger.read() as connection:
        needed = kept_blobs(connection)
    unsound: dict[str, str] = {}
    size = 0
    for done, blob in enumerate(sorted(needed), start=1):
        try:
            size += require_sound(config.store_path, blob)
        except StoreError as error:
            if _is_needed(ledger, blob):  # a collection may have deleted it meanwhile
                unsound[blob] = error.message
        progress(done, len(needed))
    with ledger.write() as connection:
        now = ledger.clock.now()
        insert_scrub(connection, now, len(needed), size, unsound, time.monotonic() - start)
        for blob, why in unsound.items():
            open_damage(connection, now, *needed[blob], why)
            log.error("unsound blob", blob=blob, why=why)
    return unsound


def _is_needed(ledger: Ledger, blob: str) -> bool:
    with ledger.read() as connection:
        return blob in kept_blobs(connection)
