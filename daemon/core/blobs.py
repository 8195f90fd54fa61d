"""Find, check and collect the blobs of the store, which are named by their sha256."""

import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from daemon.core.errors import CorruptBlobError, StoreError
from daemon.core.fsio import sha256_of, sweep_temporaries

_NAME = re.compile(r"[0-9a-f]{64}")
_SUFFIX = ".safetensors"
REPAIR = "run errata rebuild --mend, or errata restore FOLDER --blobs with a backup"


BlobCheck = Callable[[Iterable[str]], None]
"""Raises CorruptBlobError for the first blob that is missing or damaged."""


@dataclass(frozen=True)
class Swept:
    """The number of files and bytes that a collection freed."""

    files: int
    freed_bytes: int


def blob_path(root: Path, name: str) -> Path:
    """Return a blob's path, such as ``ab/abcdef….safetensors``. Raises StoreError if ``name`` is none."""
    if _NAME.fullmatch(name) is None:
        raise StoreError(f"{name[:80]!r} is not a blob name: 64 hexadecimal digits are expected")
    return root / name[:2] / f"{name}{_SUFFIX}"


def require_sound(root: Path, name: str) -> int:
    """Check a blob's bytes against its name and return its size in bytes.

    Raises CorruptBlobError if it is missing or its sha256 is not its name, StoreError if it cannot be read.
    """
    path = blob_path(root, name)
    if not path.is_file():
        raise CorruptBlobError(f"blob {name[:12]}… is missing", hint=REPAIR)
    actual = sha256_of(path)
    if actual != name:
        raise CorruptBlobError(f"blob {path} is corrupt: its sha256 is {actual[:12]}…", hint=REPAIR)
    return path.stat().st_size


def check_in(root: Path) -> BlobCheck:
    """A check of blobs in a store. A host without the store's folder cannot check, so it refuses nothing."""

    def check(names: Iterable[str]) -> None:
        if root.is_dir():
            for name in names:
                require_sound(root, name)

    return check


def all_blobs(root: Path) -> Iterator[Path]:
    """Yield the path of every blob in the store."""
    return root.glob(f"*/*{_SUFFIX}")


def touch(path: Path) -> None:
    """Reset a blob's age, so that no collection deletes it before the ledger refers to it."""
    os.utime(path)


def collect(root: Path, reachable: Collection[str], grace_seconds: float) -> Swept:
    """Delete the blobs that are not in ``reachable`` and are older than ``grace_seconds``."""
    sweep_temporaries(root, older_than=grace_seconds)
    oldest = time.time() - grace_seconds
    files = freed = 0
    for path in all_blobs(root):
        stat = path.stat()
        if path.stem in reachable or stat.st_mtime > oldest:
            continue
        freed += stat.st_size
        path.unlink(missing_ok=True)
        files += 1
    return Swept(files, freed)
