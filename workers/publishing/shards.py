"""Read and write safetensors files without torch: list their tensors, or copy them without some.

A model with its edited tensors in files of their own is published by writing only those files. The other
files are written once for each published place.
"""

import json
import os
import secrets
import struct
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from daemon.core.errors import ModelError
from daemon.core.fsio import TEMPORARY, disk_errors, fsync_folder

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SUFFIX = ".safetensors"
_LENGTH = struct.Struct("<Q")
_LONGEST_HEADER = 100 << 20  # bytes, the limit of safetensors itself
_PIECE = 8 << 20  # bytes copied at a time


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of a file: dtype and shape as safetensors names them, and its bytes [begin, end)."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_entries(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a file, ``begin`` and ``end`` counted from the start of the file.

    Raises:
        ModelError: the file cannot be read or is not a safetensors file.
    """
    try:
        with path.open("rb") as stream:
            (length,) = _LENGTH.unpack(stream.read(_LENGTH.size))
            header = json.loads(stream.read(min(length, _LONGEST_HEADER)))
        start = _LENGTH.size + length
        return {
            name: TensorEntry(
                row["dtype"],
                tuple(row["shape"]),
                start + row["data_offsets"][0],
                start + row["data_offsets"][1],
            )
            for name, row in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelError(f"{path} is not a safetensors file: {error}") from error


def require_whole(path: Path) -> None:
    """Check that a file has all the bytes that its header promises.

    Raises:
        ModelError: it is cut short, or is not a safetensors file.
    """
    end = max((entry.end for entry in read_entries(path).values()), default=0)
    if path.stat().st_size < end:
        raise ModelError(f"{path} is cut short: its header promises {end} bytes", hint="restore the file")


def files_of(folder: Path) -> dict[str, Path]:
    """The file of each tensor in a Hugging Face folder.

    Raises:
        ModelError: the folder has neither an index nor a single file.
    """
    index = folder / INDEX
    try:
        if index.is_file():
            rows = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return {name: folder / _plain(file) for name, file in rows.items()}
        return dict.fromkeys(read_entries(folder / SINGLE), folder / SINGLE)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{folder} is not a folder with a safetensors model: {error}") from error


def file_name_of(tensor: str, files: Mapping[str, Path]) -> str:
    """The name of a model's tensor in the files, which may leave out the decoder's prefix.

    Raises:
        ModelError: no name in the files matches, or several do.
    """
    if tensor in files:
        return tensor
    matches = [name for name in files if tensor.endswith(f".{name}")]
    if len(matches) != 1:
        raise ModelError(
            f"the model's files have no tensor {tensor}",
            hint="check that model.path is the model that the chain edits",
        )
    return matches[0]


def same_tensor(first: Path, name: str, second: Path, other: str) -> bool:
    """Whether two files hold the same tensor bit for bit, or of one shape where the dtypes differ."""
    one, two = read_entries(first)[name], read_entries(second)[other]
    if one.dtype != two.dtype:
        return one.shape == two.shape
    with first.open("rb") as left, second.open("rb") as right:
        left.seek(one.begin)
        right.seek(two.begin)
        return left.read(one.end - one.begin) == right.read(two.end - two.begin)


def write_without(source: Path, names: Collection[str], target: Path) -> None:
    """Copy a file atomically, without the named tensors.

    Raises:
        DiskFullError, StoreError: it cannot be written. No partial file is left.
        ModelError: ``source`` is not a safetensors file.
    """
    kept = sorted(
        ((name, entry) for name, entry in read_entries(source).items() if name not in names),
        key=lambda row: row[1].begin,
    )
    with source.open("rb") as stream:
        _write(target, {name: (entry, stream) for name, entry in kept})


def write_renamed(source: Path, names: Mapping[str, str], target: Path) -> None:
    """Copy the tensors that are keys of ``names``, renamed to its values.

    Raises:
        DiskFullError, StoreError: it cannot be written. No partial file is left.
        ModelError: a tensor is missing.
    """
    entries = read_entries(source)
    missing = sorted(set(names) - set(entries))
    if missing:
        raise ModelError(f"{source} has no tensor {missing[0]}")
    with source.open("rb") as stream:
        _write(target, {new: (entries[old], stream) for old, new in names.items()})


def _write(target: Path, tensors: Mapping[str, tuple[TensorEntry, BinaryIO]]) -> None:
    """Write a header and the bytes of the tensors, durably and atomically."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (entry, _) in tensors.items():
        size = entry.end - entry.begin
        header[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    temporary = target.with_name(f"{TEMPORARY}{secrets.token_hex(6)}-{target.name}")
    with disk_errors(target):
        try:
            with temporary.open("xb") as sink:
                sink.write(_LENGTH.pack(len(text)) + text)
                for entry, stream in tensors.values():
                    _copy(stream, sink, entry)
                sink.flush()
                os.fsync(sink.fileno())
            temporary.rename(target)
            fsync_folder(target.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def _copy(source: BinaryIO, sink: BinaryIO, entry: TensorEntry) -> None:
    source.seek(entry.begin)
    left = entry.end - entry.begin
    while left:
        piece = source.read(min(left, _PIECE))
        if not piece:
            raise OSError(None, "the source file is too short")
        sink.write(piece)
        left -= len(piece)


def _plain(name: str) -> str:
    """Check that a file name of an index has no folder in it."""
    if Path(name).name != name:
        raise ValueError(f"the index names {name[:80]!r}, which is not a plain file name")
    return name
