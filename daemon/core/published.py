"""Compare published folders with what the ledger recorded of their files, and count what they will need."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from daemon.core.errors import StoreError
from daemon.core.fsio import sha256_of

PARTS = "parts"
"""The folder of the base model's files that the published folders beside it share by hard links."""
_FOLDER = re.compile(r"r(0|[1-9][0-9]{0,17})")
_PART = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class PublishedFile:
    """A file of a published folder, as it was when it was written.

    ``part`` names the file of the base model, and what was left out of it. It is empty for a file that the
    folder shares with no other.
    """

    sha256: str
    size: int
    mtime_ns: int
    inode: int
    part: str = ""

    @classmethod
    def of(cls, path: Path, sha256: str, part: str = "") -> "PublishedFile":
        """Describe the file at ``path``, whose sha256 is known."""
        status = path.stat()
        return cls(sha256, status.st_size, status.st_mtime_ns, status.st_ino, part)

    def is_unchanged(self, status: os.stat_result) -> bool:
        """Whether a file has the size, the time and the inode of this one."""
        return (status.st_size, status.st_mtime_ns, status.st_ino) == (self.size, self.mtime_ns, self.inode)


Files = Mapping[str, PublishedFile]
"""The files of a published folder by their name."""


def folder_number(name: str) -> int | None:
    """The revision of a published folder's name such as ``r12``, or None for another name."""
    return int(name[1:]) if _FOLDER.fullmatch(name) else None


def find_flaw(folder: Path, files: Files, hashes: dict[int, str] | None = None) -> str:
    """What differs between a folder and its record, or nothing.

    Sizes, times and inodes are compared, and with ``hashes`` every byte too. It gets the sha256 of each inode
    that was read, because folders share the files of the base model.
    """
    try:
        if folder.is_symlink() or not folder.is_dir():
            return "is no folder"
        with os.scandir(folder) as entries:
            there = {entry.name: entry for entry in entries}
        if foreign := sorted(there.keys() - files.keys()):
            return f"holds {foreign[0][:80]!r}, which was not published"
        for name, recorded in files.items():
            if name not in there:
                return f"{name} is missing"
            if flaw := _flaw_of(there[name], recorded, hashes):
                return f"{name} {flaw}"
    except (OSError, StoreError) as error:
        return f"cannot be read: {error}"
    return ""


def _flaw_of(entry: os.DirEntry[str], recorded: PublishedFile, hashes: dict[int, str] | None) -> str:
    if not entry.is_file(follow_symlinks=False):
        return "is no file"
    status = Path(entry.path).lstat()
    if not recorded.is_unchanged(status):
        return "was changed or replaced"
    if not recorded.part and status.st_nlink > 1:
        return "is a second name of another file"
    if hashes is not None:
        if status.st_ino not in hashes:
            hashes[status.st_ino] = sha256_of(Path(entry.path))
        if hashes[status.st_ino] != recorded.sha256:
            return f"has the sha256 {hashes[status.st_ino][:12]}…"
    return ""


def part_files(parts: Path) -> dict[str, Path]:
    """The files of the base model that the folders share, by their sha256."""
    try:
        return {path.name: path for path in parts.iterdir() if _PART.fullmatch(path.name)}
    except OSError:
        return {}
