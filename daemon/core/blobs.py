"""Blobs on disk by their sha256: where one lies, whether it is sound, which ones nobody needs any more."""

import os
import re
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from daemon.core.errors import CorruptBlobError, StoreError
from daemon.core.fsio import sha256_of, sweep_temporaries

_NAME = re.compile(r"[0-9a-f]{64}")
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Swept:
    """What a collection freed."""

    files: int
    freed_bytes: int


def blob_path(root: Path, name: str) -> Path:
    """Where a blob lies: ``ab/abcdef….safetensors``.

    Raises:
        StoreError: ``name`` is no sha256; no path is ever made of anything else.
    """
    if _NAME.fullmatch(name) is None:
        raise StoreError(f"{name[:80]!r} is no blob name")
    return root / name[:2] / f"{name}{_SUFFIX}"


def require_sound(root: Path, name: str) -> int:
    """Check a blob's bytes against its name; returns how many they are.

    Raises:
        CorruptBlobError: it is missing, or they are others. StoreError: it cannot be read.
    """
    path = blob_path(root, name)
    if not path.is_file():
        raise CorruptBlobError(
            f"blob {name[:12]}… is missing", hint="errata rebuild --mend, or errata restore"
        )
    found = sha256_of(path)
    if found != name:
        raise CorruptBlobError(
            f"blob {path} is corrupt: its sha256 is {found[:12]}…",
            hint="errata rebuild --mend, or errata restore",
        )
    return path.stat().st_size


def all_blobs(root: Path) -> Iterator[Path]:
    """Every blob that lies in the store."""
    return root.glob(f"*/*{_SUFFIX}")


def touch(path: Path) -> None:
    """Make a blob young, so that no collection takes it before the ledger speaks of it."""
    os.utime(path)


def collect(root: Path, reachable: Collection[str], grace_seconds: float) -> Swept:
    """Delete blobs that nothing reaches and that are older than ``grace_seconds``."""
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
