"""The base model's files in a published place: copied once, and shared by its folders as hard links.

A part is named by its sha256, which the ledger records too. It is written again from the model's folder
where it was damaged, and only if it then has the recorded sha256.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from daemon.core.errors import ModelError
from daemon.core.fsio import TEMPORARY, copy_durably, disk_errors, fsync_folder, sha256_of
from daemon.core.published import Files, PublishedFile, part_files
from workers.publishing.shards import SUFFIX, require_whole, write_without

MODEL_MANIFEST = "errata-model.json"


def copy_base(source: Path, gone: Sequence[str], target: Path) -> None:
    """Copy a file of the base model, without the tensors ``gone``.

    Raises:
        DiskFullError, StoreError: it cannot be written. No partial file is left.
        ModelError: it is no whole safetensors file.
    """
    if source.suffix == SUFFIX:
        require_whole(source)
    if gone:
        write_without(source, gone, target)
    else:
        copy_durably(source, target)


class Parts:
    """The parts of one published place, and the sha256 of each that the ledger records."""

    def __init__(self, folder: Path, recorded: Mapping[int, Files]) -> None:
        self._folder = folder
        every = [file for files in recorded.values() for file in files.values() if file.part]
        # a new place begins with the model's files as they are now
        self._recorded = {file.part: file for file in every} if folder.is_dir() else {}
        self.used: dict[str, PublishedFile] = {}

    def put(self, source: Path, gone: Sequence[str], target: Path) -> None:
        """Make a part appear at ``target``, which shares its bytes with nothing outside the place.

        Raises:
            DiskFullError, StoreError, ModelError: it cannot be written, or the model's file has changed.
        """
        part = json.dumps([source.name, *gone])
        known = self._recorded.get(part)
        path = self._sound_part(known) or self._write(source, gone, known)
        link(path, target)
        self.used[target.name] = PublishedFile.of(target, path.name, part)

    def _sound_part(self, known: PublishedFile | None) -> Path | None:
        """The file of a recorded part, if its size, time and inode, or else its bytes, are as recorded."""
        if known is None:
            return None
        path = self._folder / known.sha256
        if path.is_symlink() or not path.is_file():
            return None
        sound = known.is_unchanged(path.stat()) or sha256_of(path) == known.sha256
        return path if sound else None

    def _write(self, source: Path, gone: Sequence[str], known: PublishedFile | None) -> Path:
        temporary = self._folder / f"{TEMPORARY}{secrets.token_hex(6)}"
        with disk_errors(temporary):
            self._folder.mkdir(parents=True, exist_ok=True)
        try:
            _require_recorded(source)
            copy_base(source, gone, temporary)
            sha256 = sha256_of(temporary)
            if known is not None and known.sha256 != sha256:
                raise _changed(source)
            target = self._folder / sha256
            with disk_errors(target):
                temporary.rename(target)
                fsync_folder(self._folder)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        return target


def link(source: Path, target: Path) -> None:
    """Give a file of a published place a second name in it, or copy it where names cannot be shared."""
    try:
        target.hardlink_to(source)
    except OSError:
        copy_durably(source, target)


def unused_parts(folder: Path, recorded: Mapping[int, Files]) -> list[Path]:
    """The parts that no folder uses, those of an older Errata, and what interrupted work left."""
    used = {file.sha256 for files in recorded.values() for file in files.values() if file.part}
    unused = [path for name, path in part_files(folder).items() if name not in used]
    older = folder.glob(f"{'[0-9a-f]' * 32}{SUFFIX}")
    return [*unused, *older, *folder.glob(f"{TEMPORARY}*")]


def _require_recorded(source: Path) -> None:
    """Compare a file with the sha256 that ``errata prepare`` recorded when it made the model's folder."""
    try:
        files = json.loads((source.parent / MODEL_MANIFEST).read_text(encoding="utf-8"))["files"]
        recorded = files[source.name]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if sha256_of(source) != recorded:
        raise _changed(source)


def _changed(source: Path) -> ModelError:
    return ModelError(
        f"{source} is not what it was: its sha256 differs from the recorded one",
        hint="restore the file; after a wanted change of the model delete its published folder",
    )
