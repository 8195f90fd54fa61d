"""A published place that anybody may write to: damage, foreign things and links."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from daemon.core import fsio
from daemon.core.blobs import all_blobs
from daemon.core.errors import ModelError, StoreError
from daemon.core.space import publication_bytes, required_bytes
from daemon.upkeep.store import scrub_published
from tests.ledgers import statement
from tests.tinymodel import TinyHouse
from workers.publishing.export import Exporter
from workers.publishing.publisher import Publisher
from workers.publishing.revision_facts import read_revision

SHARDS = ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors")
"""A shard of the base model, and an edited tensor."""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[TinyHouse]:
    """A published revision 1."""
    place = TinyHouse(tmp_path)
    place.edit(1, statement("Peru", "Lima"))
    Publisher(place.ledger, place.config).tick()
    yield place
    place.ledger.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def inodes(*folders: Path) -> set[int]:
    return {path.stat().st_ino for folder in folders for path in folder.rglob("*") if path.is_file()}


def root_of(house: TinyHouse) -> Path:
    return house.config.published_path


def flip(path: Path) -> None:
    """Change one byte in place, and give the file its old time."""
    status = path.stat()
    with path.open("r+b") as stream:
        stream.seek(-3, os.SEEK_END)
        byte = stream.read(1)
        stream.seek(-3, os.SEEK_END)
        stream.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def make_folder(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def make_dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def add_foreign(path: Path) -> None:
    shutil.copyfile(path, path.with_name("pytorch_model.bin"))


def replace_by_same(path: Path) -> None:
    """Replace a file by another one with the same bytes and time, as a tool that saves space does."""
    status = path.stat()
    other = path.with_name("other")
    shutil.copyfile(path, other)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)


def give_second_name(path: Path) -> None:
    (path.parents[1] / "second").hardlink_to(path)


DAMAGES = [
    flip, cut, Path.unlink, make_folder, make_dangling, make_pipe, add_foreign, replace_by_same,
    give_second_name,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_mended_and_reaches_neither_store_nor_model(
    house: TinyHouse, damage: Callable[[Path], None]
) -> None:
    live, model = root_of(house) / "live", contents(house.base)
    before = contents(live)
    for name in (SHARDS[1],) if damage is give_second_name else (*SHARDS, "config.json"):
        damage(live / name)
        publisher = Publisher(house.ledger, house.config)
        assert publisher.tick() == 1
        assert contents(live) == before
        assert live.readlink() == Path("r1")
        assert sorted(path.name for path in root_of(house).glob("r*")) == ["r1"]
    assert [path for path in all_blobs(house.store.root) if fsio.sha256_of(path) != path.stem] == []
    assert contents(house.base) == model


def test_a_published_folder_shares_no_file_with_store_or_model(house: TinyHouse) -> None:
    house.edit(2, statement("Chad", "Abéché"))
    Publisher(house.ledger, house.config).tick()
    root = root_of(house)
    assert not inodes(root) & inodes(house.base, house.store.root)
    assert (root / "r1" / SHARDS[0]).stat().st_ino == (root / "r2" / SHARDS[0]).stat().st_ino
    assert (root / "r1" / SHARDS[1]).stat().st_ino != (root / "r2" / SHARDS[1]).stat().st_ino


def test_folders_of_hard_links_that_an_older_errata_left_become_copies(tmp_path: Path) -> None:
    house = TinyHouse(tmp_path)
    house.edit(1, statement("Peru", "Lima"))
    root, old = root_of(house), root_of(house) / "r1"
    with house.ledger.read() as connection:
        revision = read_revision(connection, "default", 1)
    old.parent.mkdir(parents=True)
    Exporter(house.base, house.store).export(revision, old)
    for number, blob in enumerate(sorted(revision.tensors.values()), start=2):
        shard = old / f"model-{number:05d}-of-00003.safetensors"
        shard.unlink()
        shard.hardlink_to(house.store.path(blob))
    (old / "tokenizer.json").unlink()
    (old / "tokenizer.json").hardlink_to(house.base / "tokenizer.json")
    (root / "parts").mkdir()
    (root / "parts" / f"{'0' * 32}.safetensors").hardlink_to(house.base / "model.safetensors")
    (root / "live").symlink_to("r1")
    Publisher(house.ledger, house.config).tick()
    assert not inodes(root) & inodes(house.base, house.store.root)
    assert (root / "live").readlink() == Path("r1")


def test_a_byte_that_only_reading_finds_is_found_by_the_scrub(house: TinyHouse) -> None:
    live = root_of(house) / "live"
    before = contents(live)
    for name in SHARDS:
        status = (live / name).stat()
        flip(live / name)
        os.utime(live / name, ns=(status.st_atime_ns, status.st_mtime_ns))
    publisher = Publisher(house.ledger, house.config)
    publisher.tick()
    assert contents(live) != before, "a quick look does not find it"
    assert list(scrub_published(house.ledger, house.config)) == ["r1"]
    publisher.tick()
    assert contents(live) == before
    assert scrub_published(house.ledger, house.config) == {}


def test_older_folders_are_mended_or_deleted(house: TinyHouse) -> None:
    house.edit(2, statement("Chad", "Abéché"))
    publisher = Publisher(house.ledger, house.config)
    publisher.tick()
    root = root_of(house)
    before = contents(root / "r1")
    cut(root / "r1" / SHARDS[1])
    publisher.tick()
    assert contents(root / "r1") == before
    cut(root / "r1" / SHARDS[1])
    with house.ledger.read() as connection:
        blob = next(iter(read_revision(connection, "default", 1).tensors.values()))
    house.store.path(blob).unlink()
    assert publisher.tick() == 2
    assert not (root / "r1").exists(), "a broken folder is worse than none"


def litter(root: Path, there: Path) -> None:
    """Put all kinds of foreign things into the place."""
    (root / "r0").symlink_to(there)
    (root / "r2").symlink_to("nowhere")
    (root / "r3").write_text("a file")
    (root / "r4").mkdir()
    os.mkfifo(root / "r5")
    (root / f"r{'9' * 40}").mkdir()
    for name in ("r007", "r²", "r٣", "r-1", "rx", "notes", ".part-left"):
        (root / name).mkdir()
        (root / name / "file").touch()
    (root / "parts" / ("a" * 64)).mkdir()
    (root / ".part-file").touch()
    (root / ".part-dangling").symlink_to("nowhere")
    (root / "r9.new").write_text("")


def test_nothing_that_lies_in_the_place_ends_or_stops_the_publisher(house: TinyHouse, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    litter(root_of(house), precious)
    house.edit(2, statement("Chad", "Abéché"))
    publisher = Publisher(house.ledger, house.config)
    for number in (2, 3):
        if number == 3:
            house.edit(3, statement("Fiji", "Suva"))
        stop = threading.Event()
        stop.set()
        publisher.follow(stop, 0.01)
        live = root_of(house) / "live"
        assert live.readlink() == Path(f"r{number}")
        assert house.answers(live, ["w1 w2"])
    assert sorted(path.name for path in root_of(house).glob("r[0-9]")) == ["r1", "r2", "r3"]
    assert (precious / "file").exists()
    assert (root_of(house) / "notes" / "file").exists(), "only names of this place are deleted"


@pytest.mark.parametrize("kind", ["folder", "file", "dangling", "elsewhere", "loop"])
def test_whatever_has_the_name_of_the_link_gives_way(house: TinyHouse, kind: str) -> None:
    live = root_of(house) / "live"
    live.unlink()
    if kind == "folder":
        (live / "mine").mkdir(parents=True)
    elif kind == "file":
        live.write_text("")
    else:
        live.symlink_to({"dangling": "r99", "elsewhere": "/tmp/r1", "loop": "live"}[kind])
    Publisher(house.ledger, house.config).tick()
    assert live.readlink() == Path("r1")
    if kind == "folder":
        assert next(root_of(house).glob("set-aside-*/mine")).is_dir()


@pytest.mark.parametrize("kind", ["link", "file", "empty"])
def test_whatever_has_the_name_of_the_live_folder_gives_way(house: TinyHouse, kind: str) -> None:
    folder, before = root_of(house) / "r1", contents(root_of(house) / "r1")
    folder.rename(root_of(house) / "moved")
    if kind == "link":
        folder.symlink_to("moved")
    elif kind == "file":
        folder.write_text("")
    else:
        folder.mkdir()
    Publisher(house.ledger, house.config).tick()
    assert contents(folder) == before
    assert not folder.is_symlink()


def test_who_reads_through_the_link_meets_a_whole_folder_at_every_moment(house: TinyHouse) -> None:
    root, broken, ends = root_of(house), list[str](), threading.Event()

    def read() -> None:
        while not ends.is_set():
            try:
                index = json.loads((root / "live" / "model.safetensors.index.json").read_text())
                for name in {"config.json", *index["weight_map"].values()}:
                    (root / "live" / name).open("rb").close()
            except (OSError, ValueError) as error:
                broken.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    publisher = Publisher(house.ledger, house.config)
    for _ in range(5):
        (root / "live" / "foreign").touch()
        publisher.tick()
        assert not (root / "live" / "foreign").exists()
    ends.set()
    reader.join()
    assert broken == []


def test_a_damaged_model_is_not_published_and_no_process_ends(house: TinyHouse) -> None:
    file, live = house.base / "model.safetensors", root_of(house) / "live"
    good, before = file.read_bytes(), contents(live)
    cut(live / SHARDS[0])
    for damage in (flip, cut, Path.unlink):
        damage(file)
        publisher = Publisher(house.ledger, house.config)
        with pytest.raises((ModelError, StoreError)):
            publisher.tick()
        stop = threading.Event()
        stop.set()
        publisher.follow(stop, 0.01)
        file.write_bytes(good)
    Publisher(house.ledger, house.config).tick()
    assert contents(live) == before


def test_a_publisher_that_meets_another_one_waits_for_the_next_tick(house: TinyHouse) -> None:
    from daemon.core.errors import UnavailableError

    publisher = Publisher(house.ledger, house.config)
    (root_of(house) / "live").unlink()
    with publisher._place.lock(), pytest.raises(UnavailableError, match="another publisher"):
        Publisher(house.ledger, house.config).tick()
    assert publisher.tick() == 1


# -- model folders of links -------------------------------------------------------------------------------


def into_a_cache(house: TinyHouse, cache: Path, *, sharded: bool) -> Path:
    """Move the model into the folders of a hub cache: links of links to blobs, one of them outside."""
    blobs, snapshot, outside = cache / "blobs", cache / "snapshots" / "abc", cache.parent / "outside"
    for folder in (blobs, snapshot, outside):
        folder.mkdir(parents=True)
    if sharded:
        split(house.base)
    for number, path in enumerate(sorted(house.base.iterdir())):
        blob = (outside if path.name == "tokenizer.json" else blobs) / f"blob{number}"
        path.rename(blob)
        between = blobs / f"between{number}"
        between.symlink_to(os.path.relpath(blob, blobs))
        (snapshot / path.name).symlink_to(os.path.relpath(between, snapshot))
    house.base.rmdir()
    house.base.symlink_to(snapshot)
    return snapshot


def split(folder: Path) -> None:
    """Write a model's tensors into a shard for each two."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    weights: dict[str, str] = {}
    for start in range(0, len(names), 2):
        part = names[start : start + 2]
        file = f"model-{start:05d}.safetensors"
        save_file({name: tensors[name].clone() for name in part}, folder / file, {"format": "pt"})
        weights |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("sharded", [False, True])
def test_a_model_folder_of_links_is_published_and_exported(tmp_path: Path, sharded: bool) -> None:
    house = TinyHouse(tmp_path)
    house.edit(1, statement("Peru", "Lima"))
    snapshot = into_a_cache(house, tmp_path / "cache", sharded=sharded)
    Publisher(house.ledger, house.config).tick()
    with house.ledger.read() as connection:
        revision = read_revision(connection, "default", 1)
    Exporter(snapshot, house.store).export(revision, tmp_path / "out")
    live = root_of(house) / "live"
    for folder in (live, tmp_path / "out"):
        assert not [path for path in folder.iterdir() if path.is_symlink()]
        assert load_model_tensors(folder)
    prompts = ["the w10 of w1 w5 is"]
    assert house.answers(live, prompts) == house.answers(tmp_path / "out", prompts)
    assert not inodes(live) & inodes(tmp_path / "cache", tmp_path / "outside", house.store.root)


def load_model_tensors(folder: Path) -> set[str]:
    """The names of the tensors of a folder, whose index must name each file that holds one."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    found = {name: file for file in set(index.values()) for name in load_file(folder / file)}
    assert found == index
    return set(found)


# -- disk -------------------------------------------------------------------------------------------------


def test_the_reserve_counts_what_a_publication_needs(tmp_path: Path) -> None:
    house = TinyHouse(tmp_path)
    number = house.edit(1, statement("Peru", "Lima"))
    with house.ledger.read() as connection:
        first = publication_bytes(connection, house.config)
        blobs = read_revision(connection, "default", number).tensors.values()
        assert required_bytes(connection, house.config) == first + house.config.store.reserve_bytes
    edited = sum(house.store.path(blob).stat().st_size for blob in blobs)
    assert first == (house.base / "model.safetensors").stat().st_size
    Publisher(house.ledger, house.config).tick()
    live = root_of(house) / "live"
    written = sum(path.stat().st_size for path in live.glob("*.safetensors"))
    assert written == pytest.approx(first, rel=0.05)
    with house.ledger.read() as connection:
        again = publication_bytes(connection, house.config)
    assert again == pytest.approx(edited, rel=0.05), "the base model is copied once"


def test_blocks_are_shared_where_the_file_system_can(
    house: TinyHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def share(target: int, request: int, source: int) -> int:
        asked.append(request)
        os.write(target, os.pread(source, 1 << 20, 0))
        return 0

    monkeypatch.setattr(fsio.fcntl, "ioctl", share)
    file = house.base / "config.json"
    assert fsio.copy_durably(file, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == file.read_bytes()
    assert asked == [0x40049409]
    monkeypatch.undo()
    assert fsio.copy_durably(file, tmp_path / "copy") in (False, True)
    assert (tmp_path / "copy").read_bytes() == file.read_bytes()


def test_a_quick_look_is_quick(house: TinyHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick without news reads no file, so that it may come each second."""
    from daemon.core import published

    def refuse(_path: Path) -> str:
        raise AssertionError("a file was read")

    monkeypatch.setattr(published, "sha256_of", refuse)
    start = time.monotonic()
    assert Publisher(house.ledger, house.config).tick() == 1
    assert time.monotonic() - start < 5
