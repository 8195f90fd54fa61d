"""The JSON lines feed: every line once, through rotation, truncation, rewriting and lines without end."""

import os
import random
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.core.config.feeds import JsonlFeedConfig
from daemon.core.corrections import MAX_ITEM_BYTES, parse_item
from daemon.core.errors import ConfigError, FeedError, InvalidCorrectionError
from daemon.feeds.base import Cursor, Pull, make_feed
from tests.ledgers import jsonl_feed


class Reader:
    """A feed with the cursor that the ledger would keep."""

    def __init__(self, path: Path) -> None:
        self.feed = jsonl_feed("news", path)
        self.cursor: Cursor = {}

    def pull(self, limit: int = 100) -> Pull:
        pull = self.feed.pull(self.cursor, limit)
        self.cursor = pull.cursor
        return pull

    def lines(self, limit: int = 100) -> list[str]:
        """All there is, however many pulls it takes."""
        found: list[str] = []
        for _ in range(1000):
            pull = self.pull(limit)
            found += [item.raw.decode() for item in pull.items]
            if not pull.more:
                return found
        raise AssertionError("the feed announces more items for ever")

    def positions(self) -> list[str]:
        return [item.position for item in self.pull().items]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "news.jsonl"


@pytest.fixture
def reader(path: Path) -> Reader:
    return Reader(path)


def append(path: Path, text: str) -> None:
    with path.open("a") as stream:
        stream.write(text)


def test_each_line_comes_once_and_the_cursor_goes_on(path: Path, reader: Reader) -> None:
    append(path, "a\nb\n")
    assert reader.lines() == ["a", "b"]
    assert reader.lines() == []
    append(path, "c\n")
    assert reader.lines() == ["c"]


def test_the_same_cursor_gives_the_same_items_again(path: Path, reader: Reader) -> None:
    append(path, "a\nb\n")
    assert reader.feed.pull({}, 10) == reader.feed.pull({}, 10)


def test_a_pull_is_bounded_and_says_whether_there_is_more(path: Path, reader: Reader) -> None:
    append(path, "".join(f"{n}\n" for n in range(5)))
    assert [len((pull := reader.pull(2)).items) for _ in range(3)] == [2, 2, 1]
    assert not pull.more
    append(path, "5\n6\n")
    assert not reader.pull(2).more


def test_a_line_without_its_newline_waits_for_it(path: Path, reader: Reader) -> None:
    append(path, 'a\n{"half": ')
    assert reader.lines() == ["a"]
    assert reader.lines() == []
    append(path, "1}\n")
    assert reader.lines() == ['{"half": 1}']


def test_positions_are_line_numbers_and_count_blank_lines(path: Path, reader: Reader) -> None:
    append(path, "a\n\n  \nb\r\n")
    assert reader.positions() == ["line 1", "line 4"]
    append(path, "c\n")
    assert reader.positions() == ["line 5"]


def test_a_byte_order_mark_and_carriage_returns_are_no_part_of_an_item(path: Path, reader: Reader) -> None:
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\r\n")
    assert reader.lines() == ["a", "b"]


def test_rotation_by_renaming_loses_nothing(path: Path, reader: Reader) -> None:
    append(path, "a\n")
    assert reader.lines() == ["a"]
    append(path, "b\nunfinished")
    path.rename(path.with_name("news.jsonl.1"))
    append(path, "c\n")
    assert reader.lines() == ["b", "unfinished", "c"]
    append(path, "d\n")
    assert reader.positions() == ["line 2 (after rotation 1)"]


def test_while_the_new_file_is_empty_the_old_one_is_still_followed(path: Path, reader: Reader) -> None:
    append(path, "a\n")
    reader.lines()
    moved = path.with_name("news.jsonl.1")
    path.rename(moved)
    append(moved, "b\nhalf")
    assert reader.lines() == ["b"]  # nothing at the path yet
    path.touch()
    assert reader.lines() == []
    append(moved, " a line\n")
    assert reader.lines() == ["half a line"]
    append(path, "c\n")
    assert reader.lines() == ["c"]


def test_files_that_came_and_went_while_nobody_read_are_read_in_their_order(
    path: Path, reader: Reader
) -> None:
    append(path, "a\n")
    reader.lines()
    append(path, "b\n")
    for number, age in ((3, 300), (2, 200), (1, 100)):
        moved = path.with_name(f"news.jsonl.{number}")
        path.rename(moved)
        modified = path.parent.stat().st_mtime - age
        os.utime(moved, (modified, modified))
        append(path, f"after {number}\n")
    append(path.with_name("news.jsonl.bak"), "not rotated\n")
    assert reader.lines(limit=1) == ["b", "after 3", "after 2", "after 1"]


def test_rotation_to_where_nobody_sees_it_goes_on_with_the_new_file(path: Path, reader: Reader) -> None:
    append(path, "a\nb\n")
    reader.lines()
    append(path.with_name("other"), "c\n")
    path.with_name("other").replace(path)
    assert reader.positions() == ["line 1 (after rotation 1)"]


def test_a_truncated_file_starts_anew(path: Path, reader: Reader) -> None:
    append(path, "a long first line\nb\n")
    reader.lines()
    path.write_text("c\n")
    assert reader.positions() == ["line 1 (after rotation 1)"]


def test_a_file_truncated_and_grown_beyond_the_cursor_starts_anew(path: Path, reader: Reader) -> None:
    append(path, "a\nb\n")
    reader.lines()
    path.write_text("one\ntwo\nthree\n")  # the same inode, and longer than what was read
    assert reader.lines() == ["one", "two", "three"]


def test_a_file_written_anew_with_the_same_beginning_goes_on(path: Path, reader: Reader) -> None:
    append(path, "a\nb\n")
    reader.lines()
    path.write_text("a\nb\nc\n")
    assert reader.lines() == ["c"]


def test_an_overlong_line_is_reported_once_and_passed_over(path: Path, reader: Reader) -> None:
    append(path, "a\n" + " " + "x" * (3 * MAX_ITEM_BYTES) + "\nb\n")
    items = reader.pull().items
    assert [item.position for item in items] == ["line 1", "line 2", "line 3"]
    with pytest.raises(InvalidCorrectionError) as caught:
        parse_item(items[1].raw)
    assert caught.value.reason == "too_large"
    assert items[2].raw == b"b"


def test_the_longest_allowed_line_is_whole(path: Path, reader: Reader) -> None:
    append(path, "x" * MAX_ITEM_BYTES + "\n" + "y" * (MAX_ITEM_BYTES + 1) + "\nz\n")
    assert [len(item.raw) for item in reader.pull().items] == [MAX_ITEM_BYTES, MAX_ITEM_BYTES + 1, 1]


def test_an_overlong_line_that_still_grows_is_reported_once(path: Path, reader: Reader) -> None:
    append(path, "x" * (2 * MAX_ITEM_BYTES))
    assert reader.positions() == ["line 1"]
    for _ in range(3):
        append(path, "x" * MAX_ITEM_BYTES)
        assert reader.positions() == []
    append(path, "\nb\n")
    assert reader.positions() == ["line 2"]


def test_an_overlong_line_takes_bounded_memory(path: Path, reader: Reader) -> None:
    with path.open("wb") as stream:
        for _ in range(96):
            stream.write(b"x" * (1 << 20))
        stream.write(b"\nb\n")
    tracemalloc.start()
    try:
        assert len(reader.lines()) == 2
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_missing_file_is_an_error_with_a_hint_and_moves_nothing(path: Path, reader: Reader) -> None:
    with pytest.raises(FeedError, match=r"no file at .*news\.jsonl \(create it"):
        reader.pull()
    append(path, "a\n")
    assert reader.lines() == ["a"]
    path.unlink()
    before = dict(reader.cursor)
    with pytest.raises(FeedError):
        reader.pull()
    assert reader.cursor == before


def test_a_missing_folder_is_the_same_error(tmp_path: Path) -> None:
    with pytest.raises(FeedError, match="no file at"):
        jsonl_feed("news", tmp_path / "nowhere" / "news.jsonl").pull({}, 1)


def test_a_pipe_or_folder_is_refused_instead_of_waited_for(path: Path, reader: Reader) -> None:
    os.mkfifo(path)
    with pytest.raises(FeedError, match="not a regular file"):
        reader.pull()
    path.unlink()
    path.mkdir()
    with pytest.raises(FeedError, match="not a regular file"):
        reader.pull()


def test_a_file_that_cannot_be_read_is_an_error(
    path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(path, "a\n")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(FeedError, match=r"cannot read .*Permission denied"):
        reader.pull()


def test_a_feed_is_made_from_its_configuration(path: Path) -> None:
    feed = make_feed(JsonlFeedConfig(kind="jsonl", name="news", path=path, trust=70))
    append(path, "a\n")
    assert (feed.name, feed.trust) == ("news", 70)
    assert feed.pull({}, 1).items[0].raw == b"a"


def test_an_unknown_kind_names_those_that_are_known(path: Path) -> None:
    config = JsonlFeedConfig.model_construct(kind="gopher", name="news", path=path)
    with pytest.raises(ConfigError, match="known kinds: jsonl"):
        make_feed(config)


@settings(database=None, deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), limit=st.integers(1, 7))
def test_whatever_the_writer_does_every_line_comes_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, seed: int, limit: int
) -> None:
    """A writer that appends in pieces and rotates by renaming, against a reader that looks at any moment."""
    chance = random.Random(seed)
    path = tmp_path_factory.mktemp("feed") / "news.jsonl"
    path.touch()
    reader, written, got, rotations = Reader(path), [], [], 0
    reader.pull()  # a feed that is new does not look at what was rotated away before it
    for number in range(60):
        line = f"{number} " + "x" * chance.choice([0, 3, 200])
        cut = chance.randrange(len(line) + 1)
        append(path, line[:cut])
        if chance.random() < 0.4:
            got += [item.raw.decode() for item in reader.pull(limit).items]
        append(path, line[cut:] + "\n")
        written.append(line.strip())
        if chance.random() < 0.15:
            rotations += 1
            os.utime(path, (rotations, rotations))  # the clock of files is too coarse for this writer
            path.rename(path.with_name(f"news.jsonl.{rotations}"))
            for _ in range(chance.choice([0, 1, 20])):
                with suppress(FeedError):  # nothing is at the path, and the old file is read to its end
                    got += [item.raw.decode() for item in reader.pull(limit).items]
            path.touch()
    append(path, "end\n")
    assert got + reader.lines(limit) == [*written, "end"]
