"""Write a revision as a complete Hugging Face folder that is independent of Errata.

The folder contains the base model's files, its shards without the edited tensors, one shard for each edited
tensor, an index over them, a model card, and the facts of the revision.
"""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from daemon.core.blobs import REPAIR, require_sound
from daemon.core.errors import CorruptBlobError, ModelError, StoreError
from daemon.core.fsio import TEMPORARY, copy_durably, disk_errors, fsync_folder, sha256_of, write_durably
from daemon.core.published import Files, PublishedFile
from workers.publishing.model_card import model_card
from workers.publishing.parts import MODEL_MANIFEST, Parts, copy_base
from workers.publishing.revision_facts import RevisionFacts
from workers.publishing.shards import (
    INDEX,
    SUFFIX,
    file_name_of,
    files_of,
    read_entries,
    write_renamed,
)
from workers.revisions.store import Store

MANIFEST = "errata.json"
FACTS = "facts.jsonl"
_KEPT_SUFFIXES = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken"})
_LEFT_OUT = frozenset({INDEX, MANIFEST, MODEL_MANIFEST})
_DTYPES: Mapping[str, str] = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
PutBase = Callable[[Path, Sequence[str], Path], None]
"""Puts a file of the base model, without some tensors, at the path of the last argument."""


@dataclass(frozen=True)
class Shard:
    """A shard to write: its tensors, and the function that puts it at a path."""

    tensors: list[str]
    put: Callable[[Path], None]


class Exporter:
    """Writes revisions of one model as folders, from its base folder and the store."""

    def __init__(self, model_folder: Path, store: Store) -> None:
        self._base, self._store = model_folder, store
        self._files = files_of(model_folder)

    def export(self, revision: RevisionFacts, target: Path) -> None:
        """Write a folder that shares no files with this installation.

        Raises:
            StoreError: ``target`` is not empty, a blob is damaged or missing, or the disk is full.
            ModelError: a file of the base model is damaged.
        """
        self._build(revision, target, copy_base)

    def publish(self, revision: RevisionFacts, target: Path, parts: Parts) -> Files:
        """Write a folder of copies of the edited tensors and of links to ``parts``, and describe its files.

        Raises:
            StoreError, ModelError: as ``export``.
        """
        self._build(revision, target, parts.put)
        return {
            path.name: parts.used.get(path.name) or PublishedFile.of(path, sha256_of(path))
            for path in sorted(target.iterdir())
        }

    def _build(self, revision: RevisionFacts, target: Path, put: PutBase) -> None:
        with whole_folder(target) as folder:
            for name in self._side_files():
                copy_base(self._base / name, (), folder / name)
            names = {name: file_name_of(name, self._files) for name in revision.tensors}
            shards = [*self._base_shards(set(names.values()), put), *self._edited(revision, names)]
            weight_map: dict[str, str] = {}
            total = 0
            for number, shard in enumerate(shards, start=1):
                name = f"model-{number:05d}-of-{len(shards):05d}{SUFFIX}"
                shard.put(folder / name)
                weight_map |= dict.fromkeys(shard.tensors, name)
                total += sum(e.end - e.begin for e in read_entries(folder / name).values())
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            write_json(folder / INDEX, index)
            self._describe(revision, folder)

    def _base_shards(self, edited: set[str], put: PutBase) -> Iterator[Shard]:
        """The base model's shards, without the edited tensors."""
        for source in sorted(set(self._files.values())):
            inside = [name for name, file in self._files.items() if file == source]
            kept = [name for name in inside if name not in edited]
            if kept:
                yield Shard(kept, partial(put, source, sorted(set(inside) - set(kept))))

    def _edited(self, revision: RevisionFacts, names: Mapping[str, str]) -> Iterator[Shard]:
        """The blobs of the revision, as copies."""
        for name, blob in sorted(revision.tensors.items()):
            yield Shard([names[name]], partial(self._put_edited, blob, name, names[name]))

    def _put_edited(self, blob: str, name: str, name_in_files: str, target: Path) -> None:
        """Copy a blob, and check the copy or, where its tensor gets another name, the blob."""
        require_sound(self._store.root, blob)
        if name != name_in_files:
            write_renamed(self._store.path(blob), {name: name_in_files}, target)
            return
        copy_durably(self._store.path(blob), target)
        if sha256_of(target) != blob:
            raise CorruptBlobError(f"blob {blob[:12]}… changed while it was copied", hint=REPAIR)

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
        config = self._read_config()
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

    def _read_config(self) -> dict[str, Any]:
        try:
            config: dict[str, Any] = json.loads((self._base / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{self._base / 'config.json'} cannot be read: {error}") from error
        return config


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to ``target`` when the block ends without an error.

    Raises:
        StoreError: ``target`` is not empty or no folder.
    """
    hint = "name a new or empty folder"
    if os.path.lexists(target) and (target.is_symlink() or not target.is_dir()):
        raise StoreError(f"{target} is no folder", hint=hint)
    temporary = target.with_name(f"{TEMPORARY}{secrets.token_hex(6)}-{target.name}")
    with disk_errors(target):
        if target.exists() and any(target.iterdir()):
            raise StoreError(f"{target} is not empty", hint=hint)
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
