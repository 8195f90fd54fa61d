"""A published place: the folders ``r<number>``, and the link ``live`` to one of them.

Whatever lies in the place may be damaged or replaced by something else. A folder is written beside the old
one and takes its name afterwards, so that ``live`` leads to a whole folder at every moment.
"""

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from daemon.core.errors import UnavailableError
from daemon.core.fsio import TEMPORARY, disk_errors, fsync_folder, try_lock
from daemon.core.log import get_logger
from daemon.core.names import LIVE_LINK
from daemon.core.published import PARTS, folder_number
from workers.publishing.export import whole_folder
from workers.publishing.parts import link

log = get_logger("errata.publish")
_LOCK = ".lock"
_NEW = ".new"  # the end of the name of a folder that will replace another
_SET_ASIDE = "set-aside-"
_GRACE = 0.05  # seconds for a reader that has just read the link to open the file behind it
_Result = TypeVar("_Result")


class Place:
    """The folder in which the revisions of one model are published."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.parts = root / PARTS

    def folder(self, number: int) -> Path:
        """The folder of a revision."""
        return self._root / f"r{number}"

    def numbers(self) -> list[int]:
        """The revisions whose folder's name is there, whatever has it, in their order."""
        try:
            names = [path.name for path in self._root.iterdir()]
        except OSError:
            return []
        return sorted(number for name in names if (number := folder_number(name)) is not None)

    def points_to(self, folder: Path) -> bool:
        """Whether ``live`` leads to a folder of this place."""
        live = self._root / LIVE_LINK
        return live.is_symlink() and live.readlink() == Path(folder.name)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other publishers out of the place. Raises UnavailableError while one is at work."""
        with disk_errors(self._root):
            self._root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with disk_errors(self._root):
                is_mine = try_lock(descriptor)
            if not is_mine:
                raise UnavailableError(f"another publisher is at work in {self._root}")
            yield
        finally:
            os.close(descriptor)

    def point_to(self, folder: Path) -> None:
        """Make ``live`` lead to a folder atomically. A real folder of that name is set aside."""
        live = self._root / LIVE_LINK
        temporary = self._temporary(LIVE_LINK)
        with disk_errors(live):
            temporary.symlink_to(folder.name)
            if live.is_dir() and not live.is_symlink():
                aside = self._root / f"{_SET_ASIDE}{LIVE_LINK}-{secrets.token_hex(3)}"
                live.rename(aside)
                log.warning("a folder had the name of the link", set_aside=str(aside))
            temporary.rename(live)
            fsync_folder(self._root)

    def write(self, number: int, build: Callable[[Path], _Result]) -> _Result:
        """Let ``build`` write the folder of a revision, which then takes the place of what has its name."""
        folder = self.folder(number)
        if not os.path.lexists(folder):
            return build(folder)
        fresh = folder.with_name(folder.name + _NEW)
        self.discard(fresh)
        built = build(fresh)
        with disk_errors(folder):
            if self.points_to(folder):
                self._lead_away(folder, fresh)
                self._double(fresh, folder)
                self._lead_away(fresh, folder)
            else:
                self.discard(folder)
                fresh.rename(folder)
                fsync_folder(self._root)
        return built

    def discard(self, path: Path) -> None:
        """Delete what has a name, a folder at once and its content afterwards."""
        with disk_errors(path):
            if not path.is_dir() or path.is_symlink():
                path.unlink(missing_ok=True)
                return
            aside = self._temporary(path.name)
            path.rename(aside)
            shutil.rmtree(aside)

    def outdated(self, current: int, keep: int) -> list[Path]:
        """All folders but the current one and the newest others, and what interrupted work left."""
        left = [*self._root.glob(f"{TEMPORARY}*"), *self._root.glob(f"r*{_NEW}")]
        others = [number for number in self.numbers() if number != current]
        return [*left, *map(self.folder, others[: max(0, len(others) - keep)])]

    def _lead_away(self, old: Path, new: Path) -> None:
        """Point ``live`` from one folder to another one, and delete the old one."""
        self.point_to(new)
        time.sleep(_GRACE)
        self.discard(old)

    def _double(self, source: Path, target: Path) -> None:
        """Make a second folder of the same files."""
        with whole_folder(target) as folder:
            for path in source.iterdir():
                link(path, folder / path.name)

    def _temporary(self, name: str) -> Path:
        return self._root / f"{TEMPORARY}{secrets.token_hex(6)}-{name}"
