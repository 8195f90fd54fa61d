"""Write a revision as a complete Hugging Face folder that is independent of Errata.

The folder contains the base model's files, its shards without the edited tensors, one shard for each edited
tensor, an index over them, a model card, and the facts of the revision.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from daemon.core.blobs import require_sound
from daemon.core.errors import StoreError
from daemon.core.fsio import TEMPORARY, disk_errors, fsync_folder, write_durably
from workers.publishing.model_card import model_card
from workers.publishing.revision_facts import RevisionFacts
from workers.publishing.shards import (
    INDEX,
    file_name_of,
    files_of,
    read_entries,
    write_renamed,
    write_without,
)
from workers.revisions.store import Store

MANIFEST = "errata.json"
FACTS = "facts.jsonl"
_KEPT_SUFFIXES = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken"})
_LEFT_OUT = frozenset({INDEX, MANIFEST, "errata-model.json"})
_DTYPES: Mapping[str, str] = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
Place = Callable[[Path, Path], None]
"""Makes the file at the first path appear at the second path too."""


@dataclass(frozen=True)
class Shard:
    """A shard to write: its source, its tensors, and the function that puts it into the folder."""

    source: Path
    tensors: list[str]
    put: Place


def copy(source: Path, target: Path) -> None:
    """Copy a file durably, for folders that leave this installation."""
    with disk_errors(target):
        shutil.copyfile(source, target)
        with target.open("rb") as stream:
            os.fsync(stream.fileno())


def link(source: Path, target: Path) -> None:
    """Hard-link a file where the file system allows it, else copy it."""
    try:
        target.hardlink_to(source)
    except OSError:
        copy(source, target)


class Exporter:
    """Writes revisions of one model as folders, from its base folder and the store."""

    def __init__(self, model_folder: Path, store: Store) -> None:
        self._base, self._store = model_folder, store
        self._files = files_of(model_folder)

    def export(self, revision: RevisionFacts, target: Path) -> None:
        """Write a folder that shares no files with this installation.

        Raises:
            StoreError: ``target`` is not empty, a blob is damaged or missing, or the disk is full.
        """
        self._build(revision, target, copy, parts=None)

    def publish(self, revision: RevisionFacts, target: Path, parts: Path) -> None:
        """Write a folder of hard links to blobs of the store and to base shards kept in ``parts``.

        Raises:
            StoreError: as ``export``.
        """
        parts.mkdir(parents=True, exist_ok=True)
        self._build(revision, target, link, parts)

    def _build(self, revision: RevisionFacts, target: Path, put: Place, parts: Path | None) -> None:
        with whole_folder(target) as folder:
            for name in self._side_files():
                put(self._base / name, folder / name)
            names = {name: file_name_of(name, self._files) for name in revision.tensors}
            pieces = [*self._base_pieces(set(names.values()), put, parts)]
            pieces += self._edited(revision, names, put)
            weight_map: dict[str, str] = {}
            total = 0
            for number, piece in enumerate(pieces, start=1):
                shard = f"model-{number:05d}-of-{len(pieces):05d}.safetensors"
                piece.put(piece.source, folder / shard)
                weight_map |= dict.fromkeys(piece.tensors, shard)
                total += sum(e.end - e.begin for e in read_entries(folder / shard).values())
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            write_json(folder / INDEX, index)
            self._describe(revision, folder)

    def _base_pieces(self, edited: set[str], put: Place, parts: Path | None) -> Iterator[Shard]:
        """The base model's shards, without the edited tensors."""
        for source in sorted(set(self._files.values())):
            inside = [name for name, file in self._files.items() if file == source]
            kept = [name for name in inside if name not in edited]
            if not kept:
                continue
            gone = sorted(set(inside) - set(kept))
            if not gone:
                yield Shard(source, kept, put)
            elif parts is None:
                yield Shard(source, kept, partial(_without, gone))
            else:
                yield Shard(_part(source, gone, parts), kept, put)

    def _edited(self, revision: RevisionFacts, names: Mapping[str, str], put: Place) -> Iterator[Shard]:
        """The blobs of the revision, each checked against its sha256."""
        for name, blob in sorted(revision.tensors.items()):
            require_sound(self._store.root, blob)
            path = self._store.path(blob)
            if put is link and names[name] == name:
                yield Shard(path, [name], put)
            else:
                yield Shard(path, [names[name]], partial(_renamed, {name: names[name]}))

    def _side_files(self) -> list[str]:
        """The names of tokenizer, configuration and licence files, without code, pickles and weights."""
        return sorted(
            path.name
            for path in self._base.iterdir()
            if path.is_file()
            and path.name not in _LEFT_OUT
            and path.name != "config.json"
            and (path.suffix in _KEPT_SUFFIXES or path.name.upper().startswith(("LICENSE", "NOTICE")))
        )

    def _describe(self, revision: RevisionFacts, folder: Path) -> None:
        """Write config.json with the dtype of the edited tensors, the card, the manifest and the facts."""
        config = json.loads((self._base / "config.json").read_text(encoding="utf-8"))
        entries = [
            e for blob in revision.tensors.values() for e in read_entries(self._store.path(blob)).values()
        ]
        config.pop("torch_dtype", None)
        for entry in entries:
            config["dtype"] = _DTYPES[entry.dtype]
        write_json(folder / "config.json", config)
        write_json(folder / MANIFEST, revision.manifest())
        lines = (json.dumps(fact, ensure_ascii=False) + "\n" for fact in revision.facts)
        write_durably(folder / FACTS, "".join(lines).encode())
        write_durably(folder / "README.md", model_card(revision, config).encode())


def _without(gone: list[str], source: Path, target: Path) -> None:
    write_without(source, gone, target)


def _renamed(names: Mapping[str, str], source: Path, target: Path) -> None:
    write_renamed(source, names, target)


def _part(source: Path, gone: list[str], parts: Path) -> Path:
    """A base shard without its edited tensors, written once and kept in ``parts``."""
    status = source.stat()
    about = json.dumps([str(source.resolve()), status.st_size, status.st_mtime_ns, gone])
    target = parts / f"{hashlib.sha256(about.encode()).hexdigest()[:32]}.safetensors"
    if not target.is_file():
        write_without(source, gone, target)
    return target


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to ``target`` when the block ends without an error.

    Raises:
        StoreError: ``target`` is not empty.
    """
    if target.exists() and any(target.iterdir()):
        raise StoreError(f"{target} is not empty", hint="name a new or empty folder")
    temporary = target.with_name(f"{TEMPORARY}{secrets.token_hex(6)}-{target.name}")
    with disk_errors(target):
        temporary.mkdir(parents=True)
    try:
        yield temporary
        with disk_errors(target):
            fsync_folder(temporary)
            if target.exists():
                target.rmdir()
            temporary.rename(target)
            fsync_folder(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_json(path: Path, document: Any) -> None:
    """Write a document durably as indented JSON."""
    write_durably(path, (json.dumps(document, ensure_ascii=False, indent=2) + "\n").encode())
