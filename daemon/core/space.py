"""The disk space that must be free before an edit begins."""

from pathlib import Path

from sqlalchemy import Connection

from daemon.core.blobs import blob_path
from daemon.core.config.settings import Config
from daemon.core.errors import NotFoundError, StoreError
from daemon.core.ledger.chain import head
from daemon.core.published import PARTS, part_files


def required_bytes(connection: Connection, config: Config) -> int:
    """``store.reserve_bytes`` and what publishing the next revision will need."""
    return config.store.reserve_bytes + publication_bytes(connection, config)


def publication_bytes(connection: Connection, config: Config) -> int:
    """The size of the edited tensors, which are copied, and of the base model's files not yet copied.

    Where the file system shares blocks between copies, less is used. Without a publisher nothing is.
    """
    if not config.publish.follow and not config.published_path.is_dir():
        return 0
    try:
        blobs = head(connection, config.model.name)["tensors"].values()
    except NotFoundError:
        return 0
    edited = sum(_size(blob_path(config.store_path, blob)) for blob in blobs)
    base = sum(_size(path) for path in config.model_path.glob("*.safetensors"))
    copied = sum(_size(path) for path in part_files(config.published_path / PARTS).values())
    return edited + max(0, base - edited - copied)


def _size(path: Path) -> int:
    """The bytes of a file, behind links too, or 0 where there is none."""
    try:
        return path.stat().st_size
    except (OSError, StoreError):
        return 0
