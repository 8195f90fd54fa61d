"""Write and copy files so that they survive a crash, hash them, and lock them."""

import errno
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from daemon.core.errors import DiskFullError, StoreError

FaultHook = Callable[[str], None]
"""Called with the name of each point at which a crash could matter. Production passes ``no_fault``."""

TEMPORARY = ".part-"
_PIECE = 1 << 20  # bytes read at once: 1 MiB, above which reading gets no faster
_FICLONE = 0x40049409  # of linux/fs.h: both files share the blocks until one of them is written


def no_fault(name: str) -> None:
    """Do nothing, the default value of every ``fault`` argument."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk into DiskFullError and any other OSError into StoreError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"no space left for {path.name}", hint="free space on the disk; edits then resume"
            ) from error
        raise StoreError(f"cannot write {path}: {error.strerror}") from error


def fsync_folder(folder: Path) -> None:
    """Flush the names in ``folder`` to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes, *, mode: int = 0o644, fault: FaultHook = no_fault) -> None:
    """Write ``data`` to ``path`` so that a crash leaves the old file or the new one, never a part.

    The data is written to a temporary file beside ``path``, flushed and renamed, and the folder is flushed.
    After DiskFullError or StoreError the temporary file is gone and ``path`` is as it was, or new where only
    the fsync of its folder failed. A failed fsync is not tried again on the same descriptor, because the
    kernel may have dropped the pages (PostgreSQL, 2018).
    """
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(6)}-{path.name}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
            try:
                fault("fsio.write")
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
                fault("fsio.fsync")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            fault("fsio.rename")
            temporary.rename(path)
            fault("fsio.folder")
            fsync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def copy_durably(source: Path, target: Path) -> bool:
    """Copy a file into one of its own, and return whether both share blocks until one of them is written.

    Links are followed. After DiskFullError or StoreError ``target`` is as it was and no part is left. The
    caller flushes the name: ``fsync_folder``.
    """
    temporary = target.with_name(f"{TEMPORARY}{secrets.token_hex(6)}-{target.name}")
    with disk_errors(target), source.open("rb") as reader:
        try:
            mode = os.fstat(reader.fileno()).st_mode & 0o777
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
            try:
                shares = _share_blocks(reader.fileno(), descriptor)
                while not shares and (piece := reader.read(_PIECE)):
                    view = memoryview(piece)
                    while view:
                        view = view[os.write(descriptor, view) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            temporary.rename(target)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    return shares


def _share_blocks(source: int, target: int) -> bool:
    """Whether the file system lets the new file share the blocks of the other one (btrfs, XFS)."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def try_lock(descriptor: int) -> bool:
    """Take the lock of an open file, and return False while another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal, or raise StoreError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while piece := stream.read(_PIECE):
                digest.update(piece)
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()


def sweep_temporaries(folder: Path, older_than: float = 0.0) -> int:
    """Delete the temporary files of interrupted writes under ``folder`` and return their number.

    Files younger than ``older_than`` seconds stay, because their writer may still be at work.
    """
    count, youngest = 0, time.time() - older_than
    for path in folder.rglob(f"{TEMPORARY}*"):
        with suppress(FileNotFoundError):  # its writer has just renamed it
            if path.stat().st_mtime <= youngest:
                path.unlink()
                count += 1
    return count
