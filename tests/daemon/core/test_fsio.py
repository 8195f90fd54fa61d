"""After a failure at any point a file has its old content and no temporary file is left."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from daemon.core import fsio
from daemon.core.errors import DiskFullError, StoreError
from daemon.core.fsio import sha256_of, sweep_temporaries, write_durably

POINTS = ["fsio.write", "fsio.fsync", "fsio.rename", "fsio.folder"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "blob"
    target.write_bytes(b"old")
    return target


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def failing_at(point: str, number: int) -> Any:
    def fault(name: str) -> None:
        if name == point:
            raise OSError(number, os.strerror(number))

    return fault


def test_a_new_file_has_its_content_and_mode_and_its_folder(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "blob"
    write_durably(target, b"new", mode=0o600)
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o600
    assert names(target.parent) == ["blob"]


def test_an_old_file_is_replaced(path: Path) -> None:
    write_durably(path, b"")
    assert path.read_bytes() == b""


def test_every_point_at_which_a_crash_could_matter_is_passed_in_order(path: Path) -> None:
    passed: list[str] = []
    write_durably(path, b"new", fault=passed.append)
    assert passed == POINTS


@pytest.mark.parametrize("point", POINTS[:3])
@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, DiskFullError), (errno.EDQUOT, DiskFullError), (errno.EIO, StoreError)],
)
def test_a_failure_before_the_rename_leaves_the_old_content(
    path: Path, point: str, number: int, expected: type[StoreError]
) -> None:
    with pytest.raises(expected) as caught:
        write_durably(path, b"new", fault=failing_at(point, number))
    assert type(caught.value) is expected
    assert caught.value.retryable == (expected is DiskFullError)
    assert path.read_bytes() == b"old"
    assert names(path.parent) == ["blob"]
    write_durably(path, b"new")  # and it recovers
    assert path.read_bytes() == b"new"


def test_a_failure_after_the_rename_is_reported_and_leaves_no_rubbish(path: Path) -> None:
    with pytest.raises(StoreError):
        write_durably(path, b"new", fault=failing_at("fsio.folder", errno.EIO))
    assert names(path.parent) == ["blob"]


@pytest.mark.parametrize("call", ["write", "fsync", "open"])
def test_a_failing_system_call_is_reported_and_tried_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    calls = []

    def fail(*arguments: object, **_: object) -> None:
        calls.append(arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"daemon.core.fsio.os.{call}", fail)
        with pytest.raises(DiskFullError, match="free space"):
            write_durably(path, b"new")
    assert len(calls) == 1
    assert path.read_bytes() == b"old"
    assert names(path.parent) == ["blob"]


def test_a_short_write_is_continued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.write
    monkeypatch.setattr("daemon.core.fsio.os.write", lambda fd, data: whole(fd, bytes(data)[:3]))
    write_durably(path, b"0123456789")
    assert path.read_bytes() == b"0123456789"


def test_content_and_name_are_synced_in_their_order(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sync the bytes before the rename and the folder after it, or a power cut may leave an empty file."""
    seen: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def spy_fsync(descriptor: int) -> None:
        seen.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")  # noqa: PTH112
        fsync(descriptor)

    def spy_rename(old: Path, new: Path) -> Path:
        seen.append("rename")
        return rename(old, new)

    monkeypatch.setattr("daemon.core.fsio.os.fsync", spy_fsync)
    monkeypatch.setattr(Path, "rename", spy_rename)
    write_durably(path, b"new")
    assert seen == ["file", "rename", "folder"]


def test_another_kind_of_exception_leaves_nothing_either(path: Path) -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_durably(path, b"new", fault=interrupt)
    assert (path.read_bytes(), names(path.parent)) == (b"old", ["blob"])


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_writer_leaves_the_old_file_or_the_new_one(path: Path, point: str) -> None:
    script = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from daemon.core.fsio import write_durably
        kill = lambda name: name == {point!r} and os.kill(os.getpid(), signal.SIGKILL)
        write_durably(Path({str(path)!r}), b"new" * 1000, fault=kill)
    """)
    done = subprocess.run([sys.executable, "-c", script], check=False, cwd=Path(fsio.__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == (b"new" * 1000 if point == "fsio.folder" else b"old")
    left = sweep_temporaries(path.parent)
    assert left == (0 if point == "fsio.folder" else 1)
    assert names(path.parent) == ["blob"]


def test_sweeping_goes_into_folders_and_spares_everything_else(path: Path) -> None:
    deep = path.parent / "deep"
    deep.mkdir()
    (deep / f"{fsio.TEMPORARY}123-x").touch()
    (path.parent / f"{fsio.TEMPORARY}456-y").touch()
    (deep / "kept").touch()
    assert sweep_temporaries(path.parent) == 2
    assert names(path.parent) == ["blob", "deep"]
    assert names(deep) == ["kept"]


def test_the_digest_is_of_the_whole_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(10_000)
    path.write_bytes(data)
    monkeypatch.setattr("daemon.core.fsio._PIECE", 999)
    assert sha256_of(path) == hashlib.sha256(data).hexdigest()
    with pytest.raises(StoreError, match="cannot read"):
        sha256_of(path.with_name("none"))


def test_a_folder_in_the_way_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "blob").mkdir()
    with pytest.raises(StoreError):
        write_durably(tmp_path / "blob", b"new")
    assert names(tmp_path) == ["blob"]
    (tmp_path / "file").touch()
    with pytest.raises(StoreError):
        write_durably(tmp_path / "file" / "blob", b"new")
