"""Content-addressed blobs: whole tensors of edited layers and the associations that facts own.

A blob's name is the sha256 of its bytes. safetensors does not notice a flipped bit, so the hash is checked
at every load. Blobs are written before the ledger speaks of them; what it never spoke of is swept by ``gc``.
"""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from daemon.core.blobs import Swept, blob_path, collect, touch
from daemon.core.errors import CorruptBlobError, DiskFullError, StoreError
from daemon.core.fsio import FaultHook, no_fault, sha256_of, write_durably


class Store:
    """A folder of blobs: ``ab/abcdef….safetensors``."""

    def __init__(self, root: Path, *, fault: FaultHook = no_fault) -> None:
        self.root = root
        self._fault = fault
        root.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, name: str) -> Path:
        """Where a blob lies.

        Raises:
            StoreError: ``name`` is no sha256; no path is ever made of anything else.
        """
        return blob_path(self.root, name)

    def put(self, tensors: Mapping[str, torch.Tensor]) -> str:
        """Write tensors as one blob; returns its sha256. One that lies there unharmed is not written again.

        Raises:
            DiskFullError, StoreError: nothing is left behind.
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
            CorruptBlobError: missing, unreadable, or not the bytes that were written.
        """
        path = self.path(name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CorruptBlobError(
                f"blob {name[:12]}… is missing: {error.strerror}",
                hint="errata restore brings it from a backup",
            ) from error
        found = hashlib.sha256(data).hexdigest()
        if found != name:
            raise CorruptBlobError(
                f"blob {path} is corrupt: its sha256 is {found[:12]}…",
                hint="errata rebuild --mend, or errata restore",
            )
        try:
            return load(data)
        except SafetensorError as error:
            raise CorruptBlobError(f"blob {path} is no safetensors file: {error}") from error

    def require_space(self, reserve_bytes: int) -> None:
        """Refuse to begin work that could not be saved.

        Raises:
            DiskFullError: less than ``reserve_bytes`` are free.
        """
        free = shutil.disk_usage(self.root).free
        if free < reserve_bytes:
            raise DiskFullError(
                f"{free >> 20} MiB free, {reserve_bytes >> 20} MiB needed",
                hint="free space; edits go on by themselves",
            )

    def gc(self, reachable: set[str], grace_seconds: float) -> Swept:
        """Delete blobs that no kept revision reaches and that are older than ``grace_seconds``."""
        return collect(self.root, reachable, grace_seconds)
