"""A revision as a complete Hugging Face folder that needs nothing of Errata.

The folder is made of the base model's files, its shards without the edited tensors, one shard for each edited
tensor, an index over them, a model card, and the facts that the revision was taught.
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
"""Puts the file at the first path also at the second."""


@dataclass(frozen=True)
class Shard:
    """One shard to be: where it lies now, the tensors in it, and how it gets to its place."""

    source: Path
    tensors: list[str]
    put: Place


def copy(source: Path, target: Path) -> None:
    """A copy of its own: for folders that leave this installation."""
    with disk_errors(target):
        shutil.copyfile(source, target)
        with target.open("rb") as stream:
            os.fsync(stream.fileno())


def link(source: Path, target: Path) -> None:
    """A second name for the same file where the file system allows it, else a copy."""
    try:
        target.hardlink_to(source)
    except OSError:
        copy(source, target)


class Exporter:
    """Makes folders of revisions of one model from its base folder and the store."""

    def __init__(self, model_folder: Path, store: Store) -> None:
        self._base, self._store = model_folder, store
        self._files = files_of(model_folder)

    def export(self, revision: RevisionFacts, target: Path) -> None:
        """Write a folder that shares nothing with this installation.

        Raises:
            StoreError: ``target`` is there already, or a blob is damaged or missing, or the disk is full.
        """
        self._build(revision, target, copy, parts=None)

    def publish(self, revision: RevisionFacts, target: Path, parts: Path) -> None:
        """The same with hard links: blobs of the store, and shards of the base that ``parts`` keeps.

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
            write_durably(folder / INDEX, _json(index))
            self._describe(revision, folder)

    def _base_pieces(self, edited: set[str], put: Place, parts: Path | None) -> Iterator[Shard]:
        """The base's shards; those that hold edited tensors are written again without them."""
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
        """The blobs of the revision, each checked against its sha256 before anybody is shown it."""
        for name, blob in sorted(revision.tensors.items()):
            require_sound(self._store.root, blob)
            path = self._store.path(blob)
            if put is link and names[name] == name:
                yield Shard(path, [name], put)
            else:
                yield Shard(path, [names[name]], partial(_renamed, {name: names[name]}))

    def _side_files(self) -> list[str]:
        """Configuration, tokenizer and licence: no code, no pickles, no weights."""
        return sorted(
            path.name
            for path in self._base.iterdir()
            if path.is_file()
            and path.name not in _LEFT_OUT
            and path.name != "config.json"
            and (path.suffix in _KEPT_SUFFIXES or path.name.upper().startswith(("LICENSE", "NOTICE")))
        )

    def _describe(self, revision: RevisionFacts, folder: Path) -> None:
        """config.json with the dtype of the edited tensors, the card, the manifest and the facts."""
        config = json.loads((self._base / "config.json").read_text(encoding="utf-8"))
        entries = [
            e for blob in revision.tensors.values() for e in read_entries(self._store.path(blob)).values()
        ]
        config.pop("torch_dtype", None)
        for entry in entries:
            config["dtype"] = _DTYPES[entry.dtype]
        write_durably(folder / "config.json", _json(config))
        write_durably(folder / MANIFEST, _json(revision.manifest()))
        lines = (json.dumps(fact, ensure_ascii=False) + "\n" for fact in revision.facts)
        write_durably(folder / FACTS, "".join(lines).encode())
        write_durably(folder / "README.md", model_card(revision, config).encode())


def _without(gone: list[str], source: Path, target: Path) -> None:
    write_without(source, gone, target)


def _renamed(names: Mapping[str, str], source: Path, target: Path) -> None:
    write_renamed(source, names, target)


def _part(source: Path, gone: list[str], parts: Path) -> Path:
    """The base's shard without its edited tensors, written once and kept in ``parts``."""
    facts = source.stat()
    about = json.dumps([str(source.resolve()), facts.st_size, facts.st_mtime_ns, gone])
    target = parts / f"{hashlib.sha256(about.encode()).hexdigest()[:32]}.safetensors"
    if not target.is_file():
        write_without(source, gone, target)
    return target


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` that takes its name when the block ends well.

    Raises:
        StoreError: ``target`` is there already.
    """
    if target.exists() and any(target.iterdir()):
        raise StoreError(f"{target} is not empty", hint="name a folder that is not there yet")
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


def _json(document: Any) -> bytes:
    return (json.dumps(document, ensure_ascii=False, indent=2) + "\n").encode()
