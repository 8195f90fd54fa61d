"""A feed that tails a file of JSON lines, through rotation, truncation and overlong lines."""

import codecs
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO, Self

from daemon.core.config.feeds import JsonlFeedConfig
from daemon.core.corrections import MAX_ITEM_BYTES
from daemon.core.errors import FeedError
from daemon.feeds.base import Cursor, Pull, RawItem

_PIECE = MAX_ITEM_BYTES + 1  # bytes: enough of an overlong line for admission to refuse it
_MARK_BYTES = 128  # that tell a file rewritten in place from one that was appended to
_SKIP_BYTES = 64 << 20  # of one overlong line, in one pull


@dataclass(frozen=True)
class _Place:
    """Which file was read, and how far."""

    inode: int = -1
    offset: int = 0
    line: int = 0  # lines read of this file
    generation: int = 0  # files begun before this one under the same path
    mark: str = ""  # digest of the last bytes read: a file rewritten in place does not have them there
    skipping: bool = False  # inside an overlong line that was reported already

    @classmethod
    def of(cls, cursor: Cursor) -> Self:
        known = {name: cursor[name] for name in cls.__dataclass_fields__ if name in cursor}
        return cls(**known)

    def begin(self, inode: int) -> Self:
        """Return the start of another file, which is generation 0 if it is the very first."""
        generation = self.generation + 1 if self.inode >= 0 else 0
        return type(self)(inode=inode, generation=generation)

    def after(self, size: int, *, is_cut: bool) -> Self:
        """Return the place one line further."""
        # the constructor, since ``replace`` is several times slower and this runs for every line
        return type(self)(self.inode, self.offset + size, self.line + 1, self.generation, self.mark, is_cut)

    def position(self) -> str:
        """Return the place in words for an operator."""
        rotated = f" (after rotation {self.generation})" if self.generation else ""
        return f"line {self.line}{rotated}"


class JsonlFeed:
    """Lines of a file, each one correction, without blank lines.

    A last line is read when its newline is there. After a rotation the old file, and those that were rotated
    away since, are read first if they still lie uncompressed beside the new one under numbered names.
    """

    def __init__(self, config: JsonlFeedConfig) -> None:
        self.name, self.path, self.trust = config.name, config.path, config.trust

    def pull(self, cursor: Cursor, limit: int) -> Pull:
        """Return at most ``limit`` lines from ``cursor`` on.

        Raises FeedError if the file is missing, is not a regular file, or cannot be read.
        """
        place = _Place.of(cursor)
        with self._errors():
            current = self._stat()
            if current is None or current.st_ino != place.inode:
                return self._pull_rotated(place, current, limit)
            with self.path.open("rb") as stream:
                opened = os.fstat(stream.fileno())
                if opened.st_ino != place.inode:  # rotated between the two looks; the next pull sees it
                    return Pull([], cursor, more=True)
                if not _continues(stream, place, opened.st_size):
                    place = place.begin(opened.st_ino)
                return _read(stream, place, limit, is_final=False)

    def _pull_rotated(self, place: _Place, current: os.stat_result | None, limit: int) -> Pull:
        """Finish the file that was at the path before, then begin the one that is there now."""
        old, following = self._find_moved(place), self.path
        if old is not None:
            # Until a later file has something, the writer may still be filling the old one.
            following = self._following(old) or self.path
            is_final = following != self.path or (current is not None and current.st_size > 0)
            with old.open("rb") as stream:
                pull = _read(stream, place, limit, is_final=is_final)
            if pull.items or pull.more or (current is not None and not is_final):
                return replace(pull, more=pull.more or is_final)
        if current is None and following == self.path:
            raise FeedError(f"no file at {self.path}", hint="create it, or correct the feed's path")
        with following.open("rb") as stream:
            pull = _read(stream, place.begin(os.fstat(stream.fileno()).st_ino), limit, is_final=False)
        return replace(pull, more=pull.more or following != self.path)

    def _stat(self) -> os.stat_result | None:
        """Return the status of the regular file at the path, or None without a file."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise FeedError(f"{self.path} is not a regular file", hint="name a file of JSON lines")
        return status

    def _find_moved(self, place: _Place) -> Path | None:
        """Return the file that was read last, if rotation renamed it within its folder."""
        if place.inode < 0:
            return None
        for candidate, status in self._siblings():
            if status.st_ino == place.inode:
                with candidate.open("rb") as stream:
                    return candidate if _continues(stream, place, status.st_size) else None
        return None

    def _following(self, old: Path) -> Path | None:
        """Return the oldest file that was rotated away after ``old``, or None."""
        numbered = re.compile(re.escape(self.path.name) + r"[.-][0-9][0-9-]*")
        since = old.stat().st_mtime_ns
        newer = [
            (status.st_mtime_ns, path)
            for path, status in self._siblings()
            if path != old and numbered.fullmatch(path.name) and status.st_mtime_ns > since
        ]
        return min(newer)[1] if newer else None

    def _siblings(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield the regular files in the path's folder with their status."""
        with suppress(FileNotFoundError):
            for candidate in self.path.parent.iterdir():
                status = None
                with suppress(OSError):  # rotated meanwhile, or a link that leads nowhere
                    status = candidate.stat()
                if status is not None and stat.S_ISREG(status.st_mode):
                    yield candidate, status

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FeedError(
                f"cannot read {self.path}: {error.strerror}", hint="check the file's owner and mode"
            ) from error


def _continues(stream: BinaryIO, place: _Place, size: int) -> bool:
    """Whether the file was neither truncated nor rewritten in place since ``place``."""
    return size >= place.offset and _mark(stream, place.offset) == place.mark


def _mark(stream: BinaryIO, offset: int) -> str:
    if offset == 0:
        return ""
    start = max(0, offset - _MARK_BYTES)
    stream.seek(start)
    return hashlib.sha256(stream.read(offset - start)).hexdigest()[:16]


def _read(stream: BinaryIO, place: _Place, limit: int, *, is_final: bool) -> Pull:
    """Return at most ``limit`` lines from ``place`` on, of a final file also an unfinished last line."""
    items: list[RawItem] = []
    waits = False  # for bytes that are not there yet
    stream.seek(place.offset)
    for _ in range(limit):
        if place.skipping:
            place = _skip(stream, place)
        piece = b"" if place.skipping else stream.readline(_PIECE)
        is_whole, is_overlong = piece.endswith(b"\n"), len(piece) == _PIECE
        if not piece or not (is_whole or is_overlong or is_final):
            waits = not place.skipping
            break
        is_cut = is_overlong and not is_whole
        place = place.after(len(piece), is_cut=is_cut)
        if not is_cut:  # an overlong line is not stripped, so that it stays too long
            piece = (piece.removeprefix(codecs.BOM_UTF8) if place.line == 1 else piece).strip(b" \t\r\n")
        if piece:
            items.append(RawItem(piece, place.position()))
    more = not waits and os.fstat(stream.fileno()).st_size > place.offset
    return Pull(items, asdict(replace(place, mark=_mark(stream, place.offset))), more)


def _skip(stream: BinaryIO, place: _Place) -> _Place:
    """Return the place behind an overlong line, in bounded memory and bounded time."""
    skipped, is_skipping = 0, True
    while is_skipping and skipped < _SKIP_BYTES:
        piece = stream.readline(_PIECE)
        skipped += len(piece)
        is_skipping = not piece.endswith(b"\n")
        if not piece:
            break
    return replace(place, offset=place.offset + skipped, skipping=is_skipping)
