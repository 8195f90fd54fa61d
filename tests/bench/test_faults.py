"""The parts of the bench of faults: a broken folder is seen, clocks step, disks fill, faults take turns."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
import tomli_w
from sqlalchemy import select, update

from daemon.admission.submission import submit
from daemon.core.config.settings import Config, load_config
from daemon.core.errors import StoreError
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import revisions
from daemon.upkeep.backup import back_up, restore
from daemon.watch.judge import judge
from tests.bench.faults.backups import wrong_in
from tests.bench.faults.clock import SteppedClock, build_library
from tests.bench.faults.disk import small_disk
from tests.bench.faults.kinds import Fault, NothingToDoError, flip, truncate
from tests.bench.faults.place import write_toy_folder
from tests.bench.faults.reader import Damage, Look, Reader, broken_looks, mending_times
from tests.bench.faults.record import Record, Witness
from tests.bench.faults.storm import Storm
from tests.bench.site import Part
from tests.conftest import absent
from tests.ledgers import make_batch, roll_back
from tests.toy import WIDE, ToyEditor, said
from workers.publishing.publisher import Publisher
from workers.queue.assemble import write_base_revision
from workers.revisions.store import Store
from workers.session.session import Session


@dataclass(frozen=True)
class Published:
    """A toy with two revisions, the second of which is published."""

    config: Config
    ledger: Ledger

    @property
    def folder(self) -> Path:
        return (self.config.published_path / "live").resolve()

    def look(self) -> str:
        """What a reader finds wrong."""
        look = Reader(self.config).look()
        assert look is not None
        return look.wrong


@pytest.fixture
def published(tmp_path: Path) -> Iterator[Published]:
    base = write_toy_folder(tmp_path / "base")
    settings = {"model": {"path": str(base)}, "watch": {"delta_ceiling": 1e6, "batch_delta_ceiling": 1e6}}
    settings |= {"store": {"reserve_bytes": 0}}  # type: ignore[dict-item]
    (tmp_path / "errata.toml").write_text(tomli_w.dumps(settings))
    config = load_config(tmp_path / "errata.toml")
    ledger, store, editor = Ledger.open(config.ledger_url), Store(config.store_path), ToyEditor(WIDE)
    write_base_revision(ledger, store, editor, config)
    session = Session(ledger, store, editor, config)
    for day, city in ((1, "City 1"), (2, "City 2")):
        submit(ledger, said("Peru", city, day), "tester")
        batch = make_batch(ledger)
        assert batch is not None
        session.run(batch)
        judge(ledger, config)
    Publisher(ledger, config).tick()
    yield Published(config, ledger)
    ledger.close()


def test_a_sound_folder_is_sound(published: Published) -> None:
    assert published.folder.name == "r2"
    assert published.look() == ""


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_each_damaged_file_is_seen(published: Published, damage: Callable[[Path], None]) -> None:
    names = sorted(
        path.name for path in published.folder.iterdir() if path.name.endswith((".safetensors", "l"))
    )
    assert "facts.jsonl" in names
    for name in [*names, "errata.json", "model.safetensors.index.json", "config.json"]:
        path = published.folder / name
        whole = path.read_bytes()
        damage(path)
        wrong = published.look()
        path.unlink(missing_ok=True)
        path.write_bytes(whole)
        assert wrong or (name == "config.json" and damage is flip), name
    assert published.look() == ""


def test_a_folder_of_other_weights_is_seen(published: Published) -> None:
    with published.ledger.write() as connection:
        first = select(revisions.c.tensors).where(revisions.c.number == 1)
        tensors = connection.execute(first).scalar_one()
        connection.execute(update(revisions).where(revisions.c.number == 2).values(tensors=tensors))
    assert "is not the ledger's" in published.look()


def look(began: float, wrong: str = "") -> Look:
    return Look(began, began + 0.1, 1, wrong)


def test_a_broken_look_counts_unless_somebody_has_just_damaged_the_folder() -> None:
    looks = [look(1), look(2, "cut"), look(3), look(4, "cut"), look(5)]
    assert len(broken_looks(looks, [], bound=10)) == 2
    assert len(broken_looks(looks, [Damage(1.5, "cut")], bound=10)) == 1
    assert mending_times(looks, [Damage(1.5, "cut"), Damage(2.5, "unseen")], bound=10) == [1.5]


def test_damage_that_stays_counts() -> None:
    looks = [look(at, "cut") for at in range(1, 30)]
    assert len(broken_looks(looks, [Damage(0.5, "cut")], bound=10)) == 19
    assert mending_times(looks, [Damage(0.5, "cut")], bound=10) == [10]


def test_a_rollback_to_other_bytes_is_noticed(published: Published) -> None:
    ledger = published.ledger
    number = roll_back(ledger, 1)
    witness = Witness(ledger, Store(published.config.store_path))
    witness.start()
    witness.stop()
    (check,) = witness.checks()
    assert check.holds
    assert "1 rollbacks, 1 compared" in check.what
    with ledger.write() as connection:
        connection.execute(update(revisions).where(revisions.c.number == number).values(content_of=2))
    (check,) = witness.checks()
    assert not check.holds


def test_a_backup_with_a_hole_is_noticed(published: Published, tmp_path: Path) -> None:
    back_up(published.config, tmp_path / "backup")
    copy = published.config.model_copy(update={"data_dir": tmp_path / "restored"})
    restore(copy, tmp_path / "backup")
    assert wrong_in(copy, left_out=set(), damaged=set()) == ""
    blob = next(copy.store_path.glob("*/*.safetensors"))
    truncate(blob)
    assert "missing" in wrong_in(copy, left_out=set(), damaged={blob.stem})
    assert wrong_in(copy, left_out={blob.stem}, damaged={blob.stem}) == ""
    assert "left out" in wrong_in(copy, left_out={blob.stem}, damaged=set())


def test_the_clock_of_a_child_steps_and_no_other(tmp_path: Path) -> None:
    library = build_library(tmp_path)
    if library is None:
        absent("no C compiler for the library that steps the clock")
    clock = SteppedClock(tmp_path / "clock", library)
    file = tmp_path / "file"
    ask = "import os, sys, time, datetime; print(time.time(), datetime.datetime.now().timestamp()," \
        " time.monotonic(), os.stat(sys.argv[1]).st_mtime)"  # fmt: skip
    for seconds in (3600, -3600, 0):
        clock.step(seconds)
        time.sleep(1.1)  # dates of files are compared in whole seconds
        file.write_text("new")
        done = subprocess.run(
            [sys.executable, "-c", ask, str(file)], env={**os.environ, **clock.environment},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        now, again, monotonic, dated = map(float, done.stdout.split())
        for stepped in (now, again, dated):
            assert abs(stepped - time.time() - seconds) < 30
        assert abs(monotonic - time.monotonic()) < 30
    assert abs(datetime.now().timestamp() - time.time()) < 1


def test_a_small_disk_fills_and_turns_read_only(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8 << 20) as disk:
        if disk.why_not:
            absent(f"no small disk here: {disk.why_not}")
        kept = disk.folder / "kept"
        disk.split_off(kept)
        disk.fill()
        with pytest.raises(OSError, match="No space"):
            (kept / "blob").write_bytes(b"1" * (1 << 20))
        disk.empty()
        (kept / "blob").write_bytes(b"1" * (1 << 20))
        disk.lock(kept, read_only=True)
        with pytest.raises(OSError, match="Read-only"):
            (kept / "blob").write_bytes(b"2")
        disk.lock(kept, read_only=False)
        (kept / "blob").write_bytes(b"2")
    assert not kept.exists()


def test_a_part_is_ended_started_again_and_killed(tmp_path: Path) -> None:
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True);"
    script += "time.sleep(60)"
    part = Part("stubborn", [sys.executable, "-c", script], dict(os.environ), tmp_path / "log")
    part.start()
    deadline = time.monotonic() + 60
    while not part.log.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert part.terminate(0.3) >= 0.3
    assert part.pid is None
    part = Part("brief", [sys.executable, "-c", "raise SystemExit(3)"], dict(os.environ), tmp_path / "log")
    part.start()
    while (status := part.revive(pause=0.0)) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert status == 3
    part.kill()


def test_each_kind_comes_up_once_in_a_pack_and_targets_are_not_shared(tmp_path: Path) -> None:
    told: list[str] = []

    def impossible() -> None:
        raise NothingToDoError

    def refused() -> None:
        raise StoreError("no")

    faults = [Fault(f"kind {at}", "same", lambda at=at: told.append(f"{at}")) for at in range(3)]
    faults += [Fault("refused", "other", refused), Fault("impossible", "third", impossible)]
    record = Record()
    storm = Storm(None, faults, record, random.Random(1), tmp_path / "storm.log")  # type: ignore[arg-type]
    for now in range(40):
        storm._undo_due(float(now))
        storm._do_one(float(now))
    counts = [record.done[f"kind {at}"] for at in range(3)]
    assert min(counts) >= 1
    assert max(counts) - min(counts) <= 1
    assert record.refused["refused"] == record.done["refused"] > 0
    assert "impossible" not in record.done
