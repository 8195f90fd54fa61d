"""The views agree with the ledger on every kind of database."""

import pytest

from daemon.admission.submission import submit
from daemon.core.corrections import from_mapping
from daemon.core.errors import NotFoundError
from daemon.core.ledger.ledger import Ledger
from daemon.core.names import DEFAULT_MODEL, CorrectionState, RevisionKind
from daemon.views import figures
from daemon.views.chain import probes_in_force, revision_detail, revision_list
from daemon.views.facts import fact_list, fact_story, find_fact
from daemon.views.status import status
from tests.installation import NORMS, STAGES, edit, probes, write_quietly
from tests.ledgers import FakeClock, make_batch, roll_back, statement


def facts(ledger: Ledger, **options: object) -> dict[str, dict[str, object]]:
    with ledger.read() as connection:
        rows = fact_list(connection, DEFAULT_MODEL, limit=100, **options)  # type: ignore[arg-type]
    return {str(row["subject"]): row for row in rows}


def fact_id(country: str) -> str:
    return from_mapping(statement(country, "x")).fact_id


def test_queue_counts_what_waits_and_the_age_of_the_oldest(ledger: Ledger, clock: FakeClock) -> None:
    def queue() -> figures.Queue:
        with ledger.read() as connection:
            return figures.queue(connection, clock.now(), DEFAULT_MODEL)

    assert queue() == figures.Queue(0, 0, 0.0)
    submit(ledger, statement("Peru", "Lima"), "tester")
    make_batch(ledger)
    clock.advance(30)
    submit(ledger, statement("Chad", "N'Djamena"), "tester")
    clock.advance(12)
    assert queue() == figures.Queue(pending=1, queued=1, oldest_age_seconds=42.0)


def test_the_age_is_never_negative_when_a_clock_goes_back(ledger: Ledger, clock: FakeClock) -> None:
    submit(ledger, statement("Peru", "Lima"), "tester")
    clock.advance(-60)
    with ledger.read() as connection:
        assert figures.queue(connection, clock.now(), DEFAULT_MODEL).oldest_age_seconds == 0.0


def test_corrections_are_counted_by_model_state_and_feed(ledger: Ledger) -> None:
    write_quietly(ledger, statement("Peru", "Lima"), statement("Chad", "Abéché"))
    submit(ledger, statement("Peru", "Cusco", day=2), "tester", feed="sample")
    with ledger.read() as connection:
        counts = figures.corrections_by_state(connection)
    assert counts == {
        (DEFAULT_MODEL, CorrectionState.APPLIED, "operator"): 2,
        (DEFAULT_MODEL, CorrectionState.SUPERSEDED, "sample"): 1,
    }


def test_a_fact_shows_what_is_wanted_and_what_the_weights_hold(ledger: Ledger, clock: FakeClock) -> None:
    write_quietly(ledger, statement("Peru", "Lima"))
    clock.advance(1)
    submit(ledger, statement("Peru", "Cusco"), "tester")
    row = facts(ledger)["Peru"]
    assert (row["object"], row["state"]) == ("Cusco", "pending")
    assert (row["in_weights"], row["revision"]) == ("Lima", 1)
    assert str(row["since"]).startswith("2026-06-01")
    assert row["fact"] == fact_id("Peru")


def test_a_confirmation_does_not_hide_what_it_confirms(ledger: Ledger, clock: FakeClock) -> None:
    write_quietly(ledger, statement("Peru", "Lima"))
    clock.advance(1)
    assert submit(ledger, statement("Peru", "lima", source="other"), "tester").outcome == "confirmed"
    row = facts(ledger)["Peru"]
    assert (row["object"], row["state"]) == ("Lima", "applied")


def test_a_retracted_fact_is_held_absent(ledger: Ledger, clock: FakeClock) -> None:
    write_quietly(ledger, statement("Peru", "Lima"))
    clock.advance(1)
    write_quietly(ledger, statement("Peru", None))
    row = facts(ledger)["Peru"]
    assert (row["object"], row["in_weights"], row["revision"]) == (None, None, 2)


def test_after_a_rollback_to_base_facts_are_reverted_and_not_in_the_weights(ledger: Ledger) -> None:
    write_quietly(ledger, statement("Peru", "Lima"), statement("Chad", "Abéché"))
    roll_back(ledger, 0, "tester", "demo")
    rows = facts(ledger)
    assert {row["state"] for row in rows.values()} == {"reverted"}
    assert {row["in_weights"] for row in rows.values()} == {None}
    assert facts(ledger, state="applied") == {}
    assert set(facts(ledger, state="reverted")) == {"Peru", "Chad"}


def test_facts_come_in_order_and_in_pages(ledger: Ledger) -> None:
    names = [f"Country {number}" for number in range(7)]
    write_quietly(ledger, *(statement(name, "X") for name in names))
    with ledger.read() as connection:
        pages = [
            [row["subject"] for row in fact_list(connection, DEFAULT_MODEL, limit=3, offset=offset)]
            for offset in (0, 3, 6)
        ]
    assert [subject for page in pages for subject in page] == names


def test_a_fact_is_found_by_id_prefix_and_subject(ledger: Ledger) -> None:
    write_quietly(ledger, statement("Peru", "Lima"), statement("Chad", "Abéché"))
    wanted = fact_id("Peru")
    with ledger.read() as connection:
        for text in (wanted, wanted[:8], "Peru", "  Peru "):
            assert find_fact(connection, text) == wanted
        for text in ("peru", "Per", "f", "%", "f%", "_" * 21, ""):
            with pytest.raises(NotFoundError, match="there is no fact"):
                find_fact(connection, text)


def test_an_ambiguous_subject_lists_the_candidates(ledger: Ledger) -> None:
    write_quietly(ledger, statement("Peru", "Lima"), statement("Peru", "sol", relation="currency"))
    with ledger.read() as connection, pytest.raises(NotFoundError, match="names 2 facts") as caught:
        find_fact(connection, "Peru")
    for word in (fact_id("Peru"), "capital", "currency"):
        assert word in caught.value.hint


def test_a_fact_of_another_model_is_not_found(ledger: Ledger) -> None:
    write_quietly(ledger, statement("Peru", "Lima"))
    with ledger.read() as connection, pytest.raises(NotFoundError):
        find_fact(connection, "Peru", "other")


def test_the_story_of_a_fact_tells_when_each_value_held(ledger: Ledger, clock: FakeClock) -> None:
    for city in ("Lima", "Cusco"):
        write_quietly(ledger, statement("Peru", city))
        clock.advance(1)
    roll_back(ledger, 1, "tester", "Cusco is wrong")
    with ledger.read() as connection:
        story = fact_story(connection, fact_id("Peru"))
    told = [(said["object"], said["state"], said["held"]) for said in story["corrections"]]
    assert told == [
        ("Lima", "applied", [{"since": 1, "until": 2}, {"since": 3, "until": None}]),
        ("Cusco", "reverted", [{"since": 2, "until": 3}]),
    ]


def test_revisions_are_listed_newest_first_with_the_newest_of_each_probe(ledger: Ledger) -> None:
    edit(ledger, statement("Peru", "Lima"))
    ledger.record_probes(DEFAULT_MODEL, 1, probes(efficacy=0.5))
    edit(ledger, statement("Chad", "Abéché"))
    with ledger.read() as connection:
        rows = revision_list(connection, DEFAULT_MODEL, 10)
        page = revision_list(connection, DEFAULT_MODEL, 1, before=2)
    assert [row["number"] for row in rows] == [2, 1, 0]
    assert [row["is_head"] for row in rows] == [True, False, False]
    assert [row["is_live"] for row in rows] == [False, False, True]
    assert {p["probe"]: p["score"] for p in rows[1]["probes"]} == {"efficacy": 0.5, "perplexity_ratio": 1.01}
    assert [row["number"] for row in page] == [1]


def test_one_revision_shows_what_it_wrote_and_ended(ledger: Ledger, clock: FakeClock) -> None:
    edit(ledger, statement("Peru", "Lima"))
    clock.advance(1)
    edit(ledger, statement("Peru", "Cusco"))
    with ledger.read() as connection:
        detail = revision_detail(connection, DEFAULT_MODEL, 2)
        with pytest.raises(NotFoundError):
            revision_detail(connection, DEFAULT_MODEL, 9)
    assert [row["object"] for row in detail["written"]] == ["Cusco"]
    assert [row["object"] for row in detail["ended"]] == ["Lima"]
    assert (detail["stages"], detail["norms"]) == (STAGES, NORMS)


def test_what_was_measured_counts_again_when_a_rollback_brings_it_back(ledger: Ledger) -> None:
    edit(ledger, statement("Peru", "Lima"), measured=probes(efficacy=0.97))
    edit(ledger, statement("Chad", "Abéché"), measured=probes(efficacy=0.2))
    roll_back(ledger, 1, "tester", "bad")
    with ledger.read() as connection:
        assert {p["probe"]: p["score"] for p in probes_in_force(connection, DEFAULT_MODEL)}[
            "efficacy"
        ] == 0.97
    roll_back(ledger, 0, "tester", "all of it")
    with ledger.read() as connection:
        assert probes_in_force(connection, DEFAULT_MODEL) == []


def test_a_score_that_json_cannot_say_is_none(ledger: Ledger) -> None:
    edit(ledger, statement("Peru", "Lima"), measured=probes(perplexity=float("inf")))
    with ledger.read() as connection:
        scores = {p["probe"]: p["score"] for p in probes_in_force(connection, DEFAULT_MODEL)}
    assert scores["perplexity_ratio"] is None


def test_status_agrees_with_the_ledger(ledger: Ledger, clock: FakeClock) -> None:
    edit(ledger, statement("Peru", "Lima"))
    submit(ledger, statement("Chad", "Abéché"), "tester")
    clock.advance(5)
    with ledger.read() as connection:
        page = status(connection, clock, DEFAULT_MODEL)
        assert figures.revisions_of_kind(connection, DEFAULT_MODEL, RevisionKind.EDIT) == 1
    assert (page["head"], page["live"], page["active_facts"]) == (1, 0, 1)
    assert page["queue"] == {"pending": 1, "queued": 0, "oldest_age_seconds": 5.0}
    assert page["corrections"] == {"applied": 1, "pending": 1}
    assert page["batches"] == {"done": 1}
    assert page["paused"] is False


def test_status_of_a_model_without_revisions_says_so(ledger: Ledger, clock: FakeClock) -> None:
    with ledger.read() as connection:
        page = status(connection, clock, "nobody")
    assert (page["head"], page["live"], page["probes"]) == (None, None, [])
