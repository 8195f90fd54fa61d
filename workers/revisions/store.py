"""Content-addressed blobs: whole tensors of edited layers and the associations that facts own.

A blob's name is the sha256 of its bytes. safetensors does not notice a flipped bit, so the hash is checked
at every load. Blobs are written before the ledger names them, and upkeep deletes those it never named.
"""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from daemon.core.blobs import REPAIR, blob_path, touch
from daemon.core.errors import CorruptBlobError, DiskFullError, StoreError
from daemon.core.fsio import FaultHook, no_fault, sha256_of, write_durably


class Store:
    """A folder of blobs: ``ab/abcdef….safetensors``."""

    def __init__(self, root: Path, *, fault: FaultHook = no_fault) -> None:
        self.root = root
        self._fault = fault
        root.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, name: str) -> Path:
        """The path of a blob.

        Raises:
            StoreError: ``name`` is not a sha256, so it could point outside the store.
        """
        return blob_path(self.root, name)

    def put(self, tensors: Mapping[str, torch.Tensor]) -> str:
        """Write tensors as one blob and return its sha256.

        A blob that exists undamaged is not written again.

        Raises:
            DiskFullError, StoreError: it cannot be written. No partial file is left.
        """
        try:
            data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        except SafetensorError as error:
            raise StoreError(f"tensors cannot be written: {error}") from error
        name = hashlib.sha256(data).hexdigest()
        path = self.path(name)
        if not path.exists() or sha256_of(path) != name:
            self._fault("store.put")
            write_durably(path, data, mode=0o640, fault=self._fault)
        else:
            touch(path)
        return name

    def get(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of a blob, on the CPU, after its sha256 was checked.

        Raises:
            CorruptBlobError: it is missing, unreadable, or differs from what was written.
        """
        path = self.path(name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CorruptBlobError(
                f"blob {name[:12]}… is missing: {error.strerror}",
                hint=REPAIR,
            ) from error
        digest = hashlib.sha256(data).hexdigest()
        if digest != name:
            raise CorruptBlobError(
                f"blob {path} is corrupt: its sha256 is {digest[:12]}…",
                hint=REPAIR,
            )
        try:
            return load(data)
        except SafetensorError as error:
            raise CorruptBlobError(f"blob {path} is not a safetensors file: {error}") from error

    def require_space(self, reserve_bytes: int) -> None:
        """Raise where too little disk space is free to save the work that begins.

        Raises:
            DiskFullError: less than ``reserve_bytes`` are free.
        """
        free = shutil.disk_usage(self.root).free
        if free < reserve_bytes:
            raise DiskFullError(
                f"{free >> 20} MiB free, {reserve_bytes >> 20} MiB needed",
                hint="free some disk space, then edits resume by themselves",
            )
