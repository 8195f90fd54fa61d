"""A small disk in memory that can be filled to the last byte, and whose folders can be made read-only."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SPARE = 1 << 16  # bytes that a full disk leaves: a page or two of the ledger still fit, a blob does not


class SmallDisk:
    """A tmpfs at a folder, or that folder alone where nothing may be mounted here (``why_not`` says why)."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self._size = folder, size
        self._mounted: list[Path] = []
        folder.mkdir(parents=True, exist_ok=True)
        self.why_not = self._mount(folder, "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs")

    def fill(self) -> None:
        """Leave no space, by shrinking the disk to what is on it."""
        status = os.statvfs(self.folder)
        used = (status.f_blocks - status.f_bfree) * status.f_frsize
        _call("mount", "-o", f"remount,size={used + _SPARE}", str(self.folder))

    def empty(self) -> None:
        """Give the disk its size again."""
        _call("mount", "-o", f"remount,size={self._size}", str(self.folder))

    def split_off(self, folder: Path) -> None:
        """Make a folder of the disk one that can be read-only by itself."""
        folder.mkdir(parents=True, exist_ok=True)
        if not self.why_not:
            self._mount(folder, "--bind", str(folder))

    def lock(self, folder: Path, *, read_only: bool) -> None:
        """Make a folder that was split off read-only, or writable again.

        Raises:
            OSError: a file in it is open for writing at this moment.
        """
        mode = "ro" if read_only else "rw"
        failed = _call("mount", "-o", f"remount,{mode},bind", str(folder))
        if failed:
            raise OSError(None, failed)

    def close(self) -> None:
        """Unmount everything."""
        for folder in reversed(self._mounted):
            _call("umount", "-l", str(folder))
        self._mounted.clear()

    def _mount(self, folder: Path, *arguments: str) -> str:
        """Mount something at a folder and return why that failed, or nothing."""
        if os.geteuid() != 0 or shutil.which("mount") is None:
            return "only root may mount a small disk"
        failed = _call("mount", *arguments, str(folder))
        if not failed:
            self._mounted.append(folder)
        return failed


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[SmallDisk]:
    """Yield a small disk that is unmounted at the end."""
    disk = SmallDisk(folder, size)
    try:
        yield disk
    finally:
        disk.close()


def _call(*command: str) -> str:
    """Run a command and return its complaint where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stderr.strip() or f"{command[0]} ended with {done.returncode}") if done.returncode else ""
