"""Blobs that rot: never loaded, mended from the pairs, or left behind for a revision that is sound."""

import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from daemon.core import fsio
from daemon.core.blobs import check_in
from daemon.core.errors import (
    ConfigError,
    CorruptBlobError,
    DiskFullError,
    LedgerError,
    NotFoundError,
    StoreError,
)
from daemon.core.ledger.chain import head
from daemon.core.ledger.schema import incidents, revisions, tenures
from daemon.core.ledger.scrubs import last_scrub
from daemon.core.names import RollbackCause
from daemon.upkeep import backup as backup_module
from daemon.upkeep.backup import back_up, restore, restore_blobs
from daemon.upkeep.store import collect_garbage, scrub
from tests.crash.conftest import copy_of
from tests.crash.life import Life
from tests.ledgers import roll_back
from tests.toy import ToyEditor
from tests.workers.revisions.test_store import DAMAGES, flip_a_bit
from workers.queue.tasks import survey_head
from workers.revisions.loading import load_tensors
from workers.revisions.recovery import mend_tensors, rebuild


@pytest.fixture
def life(template: Path) -> Iterator[Life]:
    """Make two edits and two rollbacks, with a third batch waiting."""
    folder = copy_of(template)
    made = Life(folder)
    for _ in range(2):
        made.take_chunk()
        made.edit_once()
    made.take_chunk()
    made.forget()
    yield made
    made.close()
    shutil.rmtree(folder)


def lose(path: Path) -> None:
    path.unlink()


def tensors_of(life: Life, number: int) -> list[Path]:
    with life.ledger.read() as connection:
        query = select(revisions.c.tensors).where(revisions.c.number == number)
        return [life.store.path(blob) for blob in connection.execute(query).scalar_one().values()]


def pairs_of(life: Life, since: int) -> Path:
    with life.ledger.read() as connection:
        query = select(tenures.c.blob).where(tenures.c.since == since, tenures.c.blob.is_not(None))
        return life.store.path(str(connection.execute(query).scalars().first()))


def store_incidents(life: Life) -> list[str]:
    with life.ledger.read() as connection:
        return list(
            connection.execute(select(incidents.c.message).where(incidents.c.probe == "store")).scalars()
        )


def kinds(life: Life) -> list[str]:
    with life.ledger.read() as connection:
        return list(connection.execute(select(revisions.c.kind).order_by(revisions.c.number)).scalars())


def live_on(life: Life) -> None:
    """A delivery that meets the damage, and one after it was seen to."""
    life.edit_once()
    life.edit_once()
    for _ in range(3):
        life.make_batches()
        life.edit_once()
    life.check_head()


@pytest.mark.parametrize("damage", [*DAMAGES, lose])
def test_tensors_of_head_are_solved_anew_from_its_facts(life: Life, damage: Callable[[Path], None]) -> None:
    for path in tensors_of(life, 2):
        damage(path)
    live_on(life)
    assert "rollback" not in kinds(life)
    assert set(life.states()) == {"applied", "superseded", "retracted", "quarantined", "confirmed"} - (
        {"confirmed"} if "confirmed" not in life.states() else set()
    )
    assert len(store_incidents(life)) == 1


def test_where_pairs_are_lost_head_falls_back_and_learns_again(life: Life) -> None:
    damage = pairs_of(life, since=2)
    flip_a_bit(damage)
    live_on(life)
    assert kinds(life)[:4] == ["base", "edit", "edit", "rollback"]
    assert "fell back to revision 1" in store_incidents(life)[0]
    assert not {"pending", "queued", "reverted"} & set(life.states())


def test_damage_is_not_held_against_the_batch_that_met_it(life: Life) -> None:
    before = life.states().count("quarantined")
    for path in tensors_of(life, 0) + tensors_of(life, 1) + tensors_of(life, 2):
        flip_a_bit(path)
    flip_a_bit(pairs_of(life, since=1))
    for _ in range(5):
        life.edit_once()  # nothing at all is sound
    assert life.states().count("quarantined") == before
    assert kinds(life) == ["base", "edit", "edit"]


def test_the_scrub_finds_every_kind_of_damage_and_opens_one_incident(life: Life) -> None:
    assert scrub(life.ledger, life.config) == {}
    broken = [tensors_of(life, 2)[0], pairs_of(life, since=1)]
    flip_a_bit(broken[0])
    broken[1].unlink()
    for _ in range(2):
        assert set(scrub(life.ledger, life.config)) == {path.stem for path in broken}
    assert len(store_incidents(life)) == 1


def test_a_scrub_asks_nothing_of_the_store_of_another_model(life: Life) -> None:
    life.ledger.found("other", {"layers.0.weight": "ab" * 32}, "encore-blue")
    assert scrub(life.ledger, life.config) == {}
    with life.ledger.read() as connection:
        assert last_scrub(connection, life.config.model.name) is not None
        assert last_scrub(connection, "other") is None


def test_head_is_what_its_facts_amount_to(life: Life) -> None:
    found = rebuild(life.ledger, life.store, ToyEditor(), "default", "op", mend=True)
    assert found.agrees
    assert found.number == 2
    assert max(found.drift.values()) < 1e-6


def test_a_survey_that_meets_damage_sees_to_it(life: Life) -> None:
    """The facts amount to the very bits that were lost, so they lie there again and head stays head."""
    for path in tensors_of(life, 2):
        flip_a_bit(path)
    survey_head(life)  # type: ignore[arg-type]
    assert kinds(life) == ["base", "edit", "edit"]
    assert scrub(life.ledger, life.config) == {}
    assert len(store_incidents(life)) == 1
    life.check_head()


def test_a_head_that_is_not_what_its_facts_amount_to_is_solved_anew(life: Life) -> None:
    with life.ledger.read() as connection:
        good = head(connection, "default")
    moved = {name: 1.5 * tensor for name, tensor in load_tensors(life.store, good["tensors"]).items()}
    blobs = {name: life.store.put({name: tensor}) for name, tensor in moved.items()}
    life.ledger.rebuild("default", blobs, {}, "op", "a slip", expected_head=2)
    found = rebuild(life.ledger, life.store, ToyEditor(), "default", "op", mend=True)
    assert not found.agrees
    assert found.number == 4
    with life.ledger.read() as connection:
        solved = head(connection, "default")
    assert (solved["kind"], solved["content"]) == ("rebuild", good["content"])
    life.check_head()


def test_a_rebuild_needs_the_pairs(life: Life) -> None:
    flip_a_bit(pairs_of(life, since=1))
    with pytest.raises(CorruptBlobError):
        rebuild(life.ledger, life.store, ToyEditor(), "default", "op", mend=True)


# -- collection -----------------------------------------------------------------------------------------


def test_old_revisions_give_up_their_tensors_and_cannot_be_gone_back_to(life: Life) -> None:
    life.go_on()
    config = life.config.model_copy(
        update={"store": life.config.store.model_copy(update={"keep_revisions": 2})}
    )
    before = len(list(life.config.store_path.glob("*/*")))
    swept = collect_garbage(life.ledger, config)
    assert 0 < swept.files < before
    assert scrub(life.ledger, config) == {}
    life.check_head()
    with life.ledger.read() as connection:
        number = head(connection, "default")["number"]
    with pytest.raises(NotFoundError, match="given up"):
        roll_back(life.ledger, 1, "op", "why")
    roll_back(life.ledger, 0, "op", "why")  # the base is always kept
    roll_back(life.ledger, number, "op", "why")
    life.check_head()


def test_a_collection_never_takes_what_a_writer_has_just_put(life: Life) -> None:
    """A blob that was lying there is young again once a writer relies on it."""
    import os

    import torch

    name = life.store.put({"w": torch.ones(3)})
    os.utime(life.store.path(name), (0, 0))
    assert life.store.put({"w": torch.ones(3)}) == name
    config = life.config.model_copy(
        update={"store": life.config.store.model_copy(update={"grace_seconds": 60})}
    )
    collect_garbage(life.ledger, config)
    life.store.get(name)


# -- backup ---------------------------------------------------------------------------------------------


def restored(life: Life) -> Life:
    """The installation after a restore, as a new process sees it."""
    return Life(life.config.data_dir.parent, ahead=60.0)


def test_a_backup_brings_everything_back(life: Life, template: Path) -> None:
    folder = copy_of(template) / "backup"
    copied = back_up(life.config, folder)
    assert copied.blobs > 0
    assert (copied.linked, copied.unsound) == (0, {})
    states = life.states()
    life.go_on()
    for path in tensors_of(life, 2):
        path.unlink()
    life.close()
    assert restore(life.config, folder).unsound == {}
    again = restored(life)
    assert again.states() == states
    again.check()
    assert scrub(again.ledger, again.config) == {}
    again.go_on()
    again.check()
    again.close()


def test_a_backup_on_the_same_disk_outlives_damage_to_the_store(life: Life, template: Path) -> None:
    folder = copy_of(template) / "backup"
    back_up(life.config, folder)
    for path in list(life.config.store_path.glob("*/*")):
        with path.open("r+b") as stream:
            stream.truncate(path.stat().st_size - 1)
    life.close()
    assert restore(life.config, folder).unsound == {}
    for path in life.config.store_path.glob("*/*"):
        assert path.stat().st_nlink == 1, "and the backup outlives the next damage"
    again = restored(life)
    assert scrub(again.ledger, again.config) == {}
    again.check()
    again.close()


def test_hard_links_are_an_option(life: Life, template: Path) -> None:
    folder = copy_of(template) / "backup"
    copied = back_up(life.config, folder, hard_links=True)
    assert copied.blobs == copied.linked > 0


@pytest.mark.parametrize("damage", [*DAMAGES, lose])
def test_a_backup_leaves_out_what_is_damaged_and_saves_the_rest(
    life: Life, template: Path, damage: Callable[[Path], None]
) -> None:
    folder, bad = copy_of(template) / "backup", tensors_of(life, 1)[0]
    whole = back_up(life.config, copy_of(template) / "whole")
    damage(bad)
    copied = back_up(life.config, folder)
    assert set(copied.unsound) == {bad.stem}
    assert "needed by default@1" in copied.unsound[bad.stem]
    assert copied.blobs == whole.blobs - 1
    shutil.rmtree(life.config.store_path)
    life.close()
    back = restore(life.config, folder)
    assert set(back.unsound) == {bad.stem}
    again = restored(life)
    with pytest.raises(CorruptBlobError, match="revision 1 cannot come back"):
        again.ledger.rollback(
            "default", 1, who="op", reason="why", cause=RollbackCause.OPERATOR,
            check=check_in(again.config.store_path),
        )  # fmt: skip
    again.check_head()
    assert mend_tensors(again.ledger, again.store, ToyEditor(), "default") == []
    again.go_on()
    again.check()
    again.close()


def test_damage_to_a_backup_is_reported_and_the_rest_restored(life: Life, template: Path) -> None:
    folder = copy_of(template) / "backup"
    back_up(life.config, folder)
    shutil.rmtree(life.config.store_path)
    lost = tensors_of(life, 0)[0]
    cut = folder / "store" / lost.relative_to(life.config.store_path)
    cut.write_bytes(cut.read_bytes()[:-1])
    life.close()
    assert set(restore(life.config, folder).unsound) == {lost.stem}


def test_what_the_store_still_has_is_not_taken_from_a_damaged_backup(life: Life, template: Path) -> None:
    folder = copy_of(template) / "backup"
    back_up(life.config, folder)
    for path in (folder / "store").glob("*/*"):
        path.write_bytes(b"")
    life.close()
    assert restore(life.config, folder).unsound == {}


def test_blobs_alone_are_restored_while_everything_runs(life: Life, template: Path) -> None:
    folder = copy_of(template) / "backup"
    back_up(life.config, folder)
    life.go_on()
    head_before = kinds(life)
    flip_a_bit(pairs_of(life, since=1))
    tensors_of(life, 1)[0].unlink()
    assert restore_blobs(life.ledger, life.config, folder).unsound == {}
    assert scrub(life.ledger, life.config) == {}
    assert kinds(life) == head_before, "the ledger is as it was"


def test_damaged_tensors_of_old_revisions_follow_from_their_facts(life: Life) -> None:
    for number in (0, 1):
        flip_a_bit(tensors_of(life, number)[0])
    assert len(scrub(life.ledger, life.config)) == 2
    assert mend_tensors(life.ledger, life.store, ToyEditor(), "default") == []
    assert scrub(life.ledger, life.config) == {}


def test_what_does_not_follow_is_named(life: Life) -> None:
    pairs = pairs_of(life, since=1)
    flip_a_bit(pairs)
    flip_a_bit(tensors_of(life, 1)[0])
    left = mend_tensors(life.ledger, life.store, ToyEditor(), "default")
    assert left == sorted([pairs.stem, tensors_of(life, 1)[0].stem])


def test_a_backup_that_was_interrupted_is_none(life: Life, template: Path) -> None:
    folder = copy_of(template) / "backup"

    def interrupt(_done: int, _of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        back_up(life.config, folder, interrupt)
    assert list(folder.iterdir()) == []
    (folder / "unfinished.sqlite").touch()  # as after a SIGKILL
    with pytest.raises(LedgerError, match="interrupted"):
        restore(life.config, folder)
    with pytest.raises(StoreError, match="interrupted"):
        back_up(life.config, folder)


def test_a_full_disk_leaves_nothing_of_a_backup(
    life: Life, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(template) / "backup"

    def full(_source: Path, target: Path) -> bool:
        with fsio.disk_errors(target):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(backup_module, "copy_durably", full)
    with pytest.raises(DiskFullError, match="no space left for the backup"):
        back_up(life.config, folder)
    assert list(folder.iterdir()) == []
    monkeypatch.undo()
    assert back_up(life.config, folder).unsound == {}


@pytest.mark.parametrize("inside", ["backup", "store/backup", "."])
def test_a_backup_does_not_lie_in_what_it_is_a_backup_of(life: Life, inside: str) -> None:
    with pytest.raises(ConfigError, match="lies in"):
        back_up(life.config, life.config.data_dir / inside)


def test_each_restore_keeps_the_ledger_that_it_replaces(life: Life, template: Path) -> None:
    folder = copy_of(template) / "backup"
    back_up(life.config, folder)
    life.close()
    for _ in range(3):
        restore(life.config, folder)
    kept = life.config.data_dir.glob("ledger.sqlite.before-restore*")
    assert len([path for path in kept if not path.name.endswith(("-wal", "-shm"))]) == 3


def test_a_backup_goes_into_a_folder_of_its_own(life: Life, tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    with pytest.raises(StoreError, match="not empty"):
        back_up(life.config, tmp_path)
    with pytest.raises(LedgerError, match="no backup"):
        restore(life.config, tmp_path)
