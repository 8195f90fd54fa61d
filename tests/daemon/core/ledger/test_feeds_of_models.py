"""Feeds belong to a model: two models may have feeds of one name, and a ledger of before loses no cursor."""

from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config as AlembicConfig
from sqlalchemy import JSON, Connection, column, insert, select, table, update
from sqlalchemy.types import NullType

from daemon.admission.admit import pull_feed
from daemon.admission.auto_pause import pause_if_poisoned
from daemon.admission.quarantine import release
from daemon.admission.submission import Submission, submit_all
from daemon.core.config.settings import Config
from daemon.core.ledger import database
from daemon.core.ledger.feeds import find_feed
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import corrections, deliveries, feed_outcomes, feeds, quarantine, switches
from daemon.core.ledger.switches import is_feed_paused, is_paused, pause, resume
from daemon.feeds.replay import replay
from daemon.scheduling.dispatch import make_batches
from daemon.scheduling.scheduler import Scheduler
from daemon.views.feeds import feed_page
from daemon.views.prometheus import render
from daemon.views.status import status
from tests.daemon.scheduling.test_scheduler import TakesAll, config_of, say
from tests.ledgers import found, jsonl_feed, statement

BEFORE = "0012"
_JSON = {"cursor", "answer", "tensors", "stages", "norms", "paraphrases", "neighborhood"}


def add(connection: Connection, name: str, /, **row: Any) -> None:
    columns = [column(key, JSON() if key in _JSON else NullType()) for key in row]
    connection.execute(insert(table(name, *columns)).values(**row))


def old_ledger(url: str, models: list[str], said: dict[str, str]) -> None:
    """Make a ledger of before, with corrections by id, each with its feed and model."""
    engine = database.open_engine(url)
    settings = AlembicConfig()
    settings.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    with database.transaction(engine, write=True) as connection:
        settings.attributes["connection"] = connection
        command.upgrade(settings, BEFORE)
        same: dict[str, Any] = {"kind": "base", "state": "live", "content": "c", "tensors": {}, "token": 0}
        same |= {"recipe": "r", "reason": "", "stages": {}, "norms": {}, "active_facts": 0}
        for model in models:
            add(connection, "revisions", model=model, number=0, created_at="2026", **same)
        row: dict[str, Any] = {"subject": "s", "relation": "r", "prompt": "p", "object": "o", "reason": ""}
        row |= {"paraphrases": [], "neighborhood": [], "source": "", "trust": 1, "order_key": ""}
        for one, origin in said.items():
            feed, _, model = origin.partition(" ")
            about = {"fact_id": "f", "feed": feed, "model": model, "admitted_at": "", "state": "applied"}
            add(connection, "corrections", id=one, **about, **row)
        for name, items in (("news", 5), ("quiet", 0)):
            add(connection, "feeds", name=name, cursor={"at": name}, items=items, error="", pulled_at=None)
        add(connection, "feed_outcomes", feed="news", outcome="accepted", count=5)
        entry = {"position": "", "reason": "schema", "message": "", "raw": "", "state": "held", "at": ""}
        for name, of in (("news", None), ("quiet", None), ("news", "c2")):
            add(connection, "quarantine", feed=name, correction_id=of, **entry)
        for key, of in (("k1", "c1"), ("k2", "c2"), ("k3", None)):
            answer = [{"correction": of}]
            add(connection, "deliveries", feed="news", key=key, digest="d", answer=answer, at="2026")
        for name in ("feed:news", "feed:quiet", "paused:b"):
            add(connection, "switches", name=name, is_on=True, reason="why", at="")
    engine.dispose()


def test_a_ledger_with_one_model_gives_it_everything(ledger_url: str) -> None:
    old_ledger(ledger_url, ["a"], {"c1": "news a", "c2": "news a"})
    ledger = Ledger.open_migrated(ledger_url)
    with ledger.read() as connection:
        for owned in (feeds, feed_outcomes, quarantine, deliveries):
            assert set(connection.execute(select(owned.c.model)).scalars()) == {"a"}, owned.name
        for name in ("news", "quiet"):
            row = find_feed(connection, "a", name)
            assert row is not None
            assert row["cursor"] == {"at": name}
            assert is_feed_paused(connection, "a", name)
        assert is_paused(connection, "b")
        assert connection.execute(select(feed_outcomes.c["count"])).scalar_one() == 5
    ledger.close()


def test_a_feed_that_two_models_read_keeps_its_cursor_for_both_and_its_counts_once(ledger_url: str) -> None:
    old_ledger(ledger_url, ["a", "b"], {"c1": "news b", "c2": "news a", "c3": "news b", "c4": "quiet b"})
    ledger = Ledger.open_migrated(ledger_url)
    with ledger.read() as connection:
        rows = connection.execute(select(feeds).order_by(feeds.c.model, feeds.c.name)).mappings().all()
        assert [(row["model"], row["name"], row["cursor"]["at"], row["items"]) for row in rows] == [
            ("a", "news", "news", 0),
            ("b", "news", "news", 5),
            ("b", "quiet", "quiet", 0),
        ]
        assert connection.execute(select(feed_outcomes.c.model, feed_outcomes.c["count"])).all() == [("b", 5)]
        refused = connection.execute(select(quarantine.c.model).order_by(quarantine.c.id)).scalars().all()
        assert refused == ["b", "b", "a"]
        answered = select(deliveries.c.key, deliveries.c.model).order_by(deliveries.c.key)
        assert connection.execute(answered).all() == [("k1", "b"), ("k2", "a"), ("k3", "b")]
        on = select(switches.c.name, switches.c.model).order_by(switches.c.name, switches.c.model)
        assert connection.execute(on).all() == [
            ("feed:news", "a"), ("feed:news", "b"), ("feed:quiet", "b"), ("paused:b", "b"),
        ]  # fmt: skip
    ledger.close()


def test_a_ledger_without_a_model_keeps_its_cursors_for_the_default_one(ledger_url: str) -> None:
    old_ledger(ledger_url, [], {})
    ledger = Ledger.open_migrated(ledger_url)
    with ledger.read() as connection:
        assert set(connection.execute(select(feeds.c.model)).scalars()) == {"default"}
    ledger.close()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return config_of(tmp_path, tmp_path / "a.jsonl", model={"name": "a"})


def test_two_models_read_feeds_of_one_name_each_at_its_own_place(ledger: Ledger, tmp_path: Path) -> None:
    daemons, files = {}, {}
    for model in ("a", "b"):
        found(ledger, model)
        files[model] = tmp_path / f"{model}.jsonl"
        files[model].touch()
        own = config_of(tmp_path, files[model], model={"name": model})
        daemons[model] = Scheduler(ledger, own, TakesAll())
    say(files["a"], statement("Peru", "Lima"), {"subject": "no correction"})
    say(files["b"], *[statement(f"Land {n}", "Town") for n in range(5)])
    for _ in range(2):
        for daemon in daemons.values():
            assert daemon.lead(), "each model has a leader of its own"
            daemon.tick()
    now = ledger.clock.now()
    with ledger.read() as connection:
        rows = connection.execute(select(corrections.c.model, corrections.c.state)).all()
        assert sorted(map(tuple, rows)) == [("a", "queued"), *[("b", "queued")] * 5]
        pages = {model: feed_page(connection, now, model, ()) for model in daemons}
        assert [page[0]["items"] for page in pages.values()] == [2, 5]
        assert pages["a"][0]["outcomes"] == {"accepted": 1, "quarantined": 1}
        held = {name: status(connection, ledger.clock, name)["quarantine_held"] for name in daemons}
        assert held == {"a": 1, "b": 0}
    shown = render(ledger, daemons["a"].config).decode()
    assert 'errata_feed_items_total{feed="news",model="b",outcome="accepted"} 5.0' in shown


def test_batches_go_to_the_queue_of_their_own_daemon(ledger: Ledger, tmp_path: Path) -> None:
    """Two daemons may have a Redis each: a batch that the other one sent would be lost."""
    queues = {"a": TakesAll(), "b": TakesAll()}
    daemons = {}
    for model, queue in queues.items():
        found(ledger, model)
        file = tmp_path / f"{model}.jsonl"
        file.touch()
        say(file, statement(f"Land of {model}", "Town"))
        daemons[model] = Scheduler(ledger, config_of(tmp_path, file, model={"name": model}), queue)
        daemons[model].lead()
        daemons[model].pull()
        make_batches(ledger, daemons[model].config)
    daemons["b"].dispatch()
    assert [len(queue.sent) for queue in queues.values()] == [0, 1]
    daemons["a"].dispatch()
    assert [len(queue.sent) for queue in queues.values()] == [1, 1]


def test_pauses_deliveries_and_replays_are_of_one_model(ledger: Ledger, config: Config) -> None:
    for model in ("a", "b"):
        found(ledger, model)
    pause(ledger, model="a", feed="news", who="ann", reason="vandals")
    with ledger.read() as connection:
        assert [is_feed_paused(connection, model, "news") for model in ("a", "b")] == [True, False]
    resume(ledger, model="b", feed="news", who="ann", reason="")
    with ledger.read() as connection:
        assert is_feed_paused(connection, "a", "news")
    said = [statement("Peru", "Lima", 1)]
    first = submit_all(ledger, "a", said, Submission("ann", key="k"))
    second = submit_all(ledger, "b", said, Submission("ann", key="k"))
    assert first[0]["correction"] != second[0]["correction"], "the answer to another model's delivery"
    assert submit_all(ledger, "b", said, Submission("ann", key="k")) == second
    path = config.data_dir / "a.jsonl"
    path.write_text("garbage\n")
    for model in ("a", "b"):
        pull_feed(ledger, jsonl_feed("news", path), 10, model)
    before = replay(ledger, "a", config.feeds[0], "start", "ann", "again")
    assert before
    with ledger.read() as connection:
        cursors = [dict(find_feed(connection, model, "news") or {})["cursor"] for model in ("a", "b")]
    assert cursors == [{}, before]


def test_refusals_of_one_model_pause_its_feed_alone_and_are_released_into_it(
    ledger: Ledger, tmp_path: Path
) -> None:
    for model in ("a", "b"):
        found(ledger, model)
    path = tmp_path / "news.jsonl"
    path.write_text("garbage\n" * 3)
    pull_feed(ledger, jsonl_feed("news", path), 10, "a")
    assert not pause_if_poisoned(ledger, "b", "news", 3)
    assert pause_if_poisoned(ledger, "a", "news", 3)
    raw = '{"subject": "Peru", "prompt": "The capital of Peru is", "object": "Lima"}'
    with ledger.write() as connection:
        entry = connection.execute(select(quarantine.c.id).limit(1)).scalar_one()
        connection.execute(update(quarantine).where(quarantine.c.id == entry).values(raw=raw))
    release(ledger, entry, "ann", "mended")
    with ledger.read() as connection:
        assert connection.execute(select(corrections.c.model)).scalars().all() == ["a"]
