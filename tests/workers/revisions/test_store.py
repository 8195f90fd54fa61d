"""The store: what is damaged is never loaded, and is written anew when its content comes again."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from daemon.core.blobs import collect
from daemon.core.errors import CorruptBlobError, DiskFullError, StoreError
from workers.revisions.store import Store

TENSORS = {"w": torch.arange(4096, dtype=torch.float32).reshape(64, 64)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    rewrite(file, bytes(data))


def zero_a_page(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[8192:12288] = bytes(4096)
    rewrite(file, bytes(data))


def truncate(file: Path) -> None:
    rewrite(file, file.read_bytes()[:-100])


def another_blob(file: Path) -> None:
    store = Store(file.parents[1])
    rewrite(file, store.path(store.put({"w": torch.zeros(64, 64)})).read_bytes())


def nothing(file: Path) -> None:
    rewrite(file, b"")


def rewrite(file: Path, data: bytes) -> None:
    file.chmod(0o600)
    file.write_bytes(data)


DAMAGES = [flip_a_bit, zero_a_page, truncate, another_blob, nothing]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_blob_is_never_loaded(store: Store, damage: Callable[[Path], None]) -> None:
    name = store.put(TENSORS)
    damage(store.path(name))
    with pytest.raises(CorruptBlobError, match="sha256"):
        store.get(name)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_blob_is_mended_when_its_content_is_written_again(
    store: Store, damage: Callable[[Path], None]
) -> None:
    name = store.put(TENSORS)
    damage(store.path(name))
    assert store.put(TENSORS) == name
    assert torch.equal(store.get(name)["w"], TENSORS["w"])


def test_a_blob_is_written_once(store: Store) -> None:
    before = store.path(store.put(TENSORS)).stat()
    after = store.path(store.put(TENSORS)).stat()
    assert before.st_ino == after.st_ino
    assert after.st_mtime_ns >= before.st_mtime_ns  # young again: no collection takes it before it is named


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a" * 64 + "\n", "A" * 64, "a" * 63, ""])
def test_no_path_is_made_of_anything_but_a_sha256(store: Store, name: str) -> None:
    with pytest.raises(StoreError, match="not a blob name"):
        store.path(name)


def test_work_that_could_not_be_saved_is_not_begun(store: Store) -> None:
    store.require_space(1)
    with pytest.raises(DiskFullError, match="resume by themselves"):
        store.require_space(1 << 60)


def test_a_collection_spares_what_is_reachable_and_what_is_young(store: Store) -> None:
    kept, lost = store.put(TENSORS), store.put({"w": torch.ones(8)})
    assert collect(store.root, {kept}, grace_seconds=3600).files == 0
    assert collect(store.root, {kept}, grace_seconds=-1).files == 1
    store.get(kept)
    with pytest.raises(StoreError, match="missing"):
        store.get(lost)
