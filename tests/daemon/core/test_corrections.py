"""Normal form, identity and order of corrections, and items of any bytes."""

import json
import time
import unicodedata
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from daemon.core.clock import from_text, to_text
from daemon.core.corrections import MAX_DEPTH, MAX_ITEM_BYTES, Correction, from_mapping, order_key, parse_item
from daemon.core.errors import InvalidCorrectionError
from daemon.core.names import QuarantineReason
from daemon.core.text import printable
from tests.ledgers import START, statement

quick = settings(database=None, deadline=None, max_examples=200)

BASE = statement("France", "Paris")


def say(**changes: Any) -> Correction:
    return from_mapping(BASE | changes)


def reason_of(raw: bytes | str) -> str:
    with pytest.raises(InvalidCorrectionError) as caught:
        parse_item(raw)
    return str(caught.value.reason)


# -- normal form ---------------------------------------------------------------------------------------


def test_text_is_normalised() -> None:
    said = say(subject="  Côte \t d'Ivoire ", prompt="The capital of Co\u0302te  d'Ivoire is\n")
    assert said.subject == "Côte d'Ivoire"
    assert said.prompt == "The capital of Côte d'Ivoire is"


def test_the_relation_comes_from_the_prompt_where_it_is_missing() -> None:
    one = from_mapping({"subject": "France", "prompt": "The capital of France is", "object": "Paris"})
    two = from_mapping({"subject": "Peru", "prompt": "The capital of Peru is", "object": "Lima"})
    assert one.relation == two.relation
    assert one.fact_id != two.fact_id


def test_the_fact_is_model_subject_and_relation_whatever_their_case() -> None:
    assert say().fact_id == say(subject="france", prompt="In france", relation="CAPITAL").fact_id
    assert len({say().fact_id, say(model="other").fact_id, say(relation="seat").fact_id}) == 3


def test_a_retraction_needs_no_prompt_but_something_else_does() -> None:
    gone = from_mapping({"subject": "France", "relation": "capital", "object": None})
    assert gone.object is None
    assert gone.prompt == ""
    assert gone.fact_id == say().fact_id
    for incomplete in (
        {"subject": "France", "object": None},
        {"subject": "F", "relation": "r", "object": "P"},
    ):
        with pytest.raises(InvalidCorrectionError, match="missing"):
            from_mapping(incomplete)


# -- identity ------------------------------------------------------------------------------------------

_WORD = st.text("abcdefgé ñ\u0301", min_size=1, max_size=12).filter(str.strip)


@quick
@given(
    subject=_WORD, city=_WORD, order=st.permutations(range(5)), gap=st.sampled_from([" ", "  ", "\t", "\n"])
)
def test_identity_does_not_depend_on_how_it_is_written(
    subject: str, city: str, order: list[int], gap: str
) -> None:
    subject = " ".join(unicodedata.normalize("NFC", subject).split())
    said = {
        "subject": subject,
        "relation": "capital",
        "prompt": f"The capital of {subject} is",
        "object": city,
        "effective_at": "2026-01-01T00:00:00Z",
    }
    pairs = list(said.items())
    other = {
        pairs[i][0]: unicodedata.normalize("NFD", pairs[i][1]).replace(" ", gap) + gap for i in order
    } | {"effective_at": "2026-01-01T01:00:00+01:00"}
    raw = json.dumps(other, indent=2)
    one, two = from_mapping(said), parse_item(raw)
    assert (one.correction_id, one.fact_id) == (two.correction_id, two.fact_id)
    assert order_key(one, 50, START) == order_key(two, 50, START)


@pytest.mark.parametrize(
    "change",
    [
        {"object": "Lyon"},
        {"object": None},
        {"prompt": "France's capital is"},
        {"relation": "seat"},
        {"model": "other"},
        {"effective_at": "2026-01-01T00:00:00Z"},
        {"observed_at": "2026-01-01T00:00:00Z"},
        {"source": "another atlas"},
    ],
)
def test_another_statement_has_another_identity(change: dict[str, Any]) -> None:
    assert say().correction_id != say(**change).correction_id


def test_what_helps_the_edit_is_no_part_of_the_identity() -> None:
    helped = say(paraphrases=["France's capital is"], neighborhood=["The capital of Peru is"])
    assert helped.correction_id == say().correction_id


def test_the_empty_object_is_not_a_retraction() -> None:
    assert reason_of(json.dumps(BASE | {"object": ""})) == "schema"
    assert reason_of(json.dumps({k: v for k, v in BASE.items() if k != "object"})) == "schema"


# -- order ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ({"effective_at": "0033-04-03T00:00:00Z"}, {"effective_at": "2026-01-01T00:00:00Z"}),
        ({"effective_at": "0999-12-31T00:00:00Z"}, {"effective_at": "1000-01-01T00:00:00Z"}),
        ({"effective_at": "2026-01-01T00:00:00+02:00"}, {"effective_at": "2025-12-31T23:00:00Z"}),
        ({"effective_at": "2026-01-01T00:00:00Z"}, {"effective_at": "2026-01-01T00:00:00.000001Z"}),
        (
            {"effective_at": "2026-01-01T00:00:00Z", "observed_at": "2026-03-01T00:00:00Z"},
            {"effective_at": "2026-02-01T00:00:00Z", "observed_at": "2026-02-01T00:00:00Z"},
        ),
        (
            {"effective_at": "2026-01-01T00:00:00Z", "observed_at": "2026-01-02T00:00:00Z"},
            {"effective_at": "2026-01-01T00:00:00Z", "observed_at": "2026-01-03T00:00:00Z"},
        ),
        ({"observed_at": "2026-01-01T00:00:00Z"}, {"observed_at": "2026-01-03T00:00:00Z"}),
        ({"effective_at": "2026-01-01T00:00:00Z"}, {}),
    ],
)
def test_order_is_effective_time_then_observed_time(older: dict[str, str], newer: dict[str, str]) -> None:
    # the trust and source of the older one are greater, and do not help it
    assert order_key(say(source="z", **older), 99, START) < order_key(say(source="a", **newer), 0, START)


def test_at_equal_times_trust_then_source_decides() -> None:
    at = {"effective_at": "2026-01-01T00:00:00Z"}
    assert order_key(say(**at, source="z"), 9, START) < order_key(say(**at, source="a"), 10, START)
    assert order_key(say(**at, source="a"), 100, START) < order_key(say(**at, source="b"), 100, START)
    keys = {order_key(say(**at, object=city), 50, START) for city in ("Paris", "Lyon", "Nice")}
    assert len(keys) == 3


@quick
@given(st.datetimes(timezones=st.just(UTC)), st.datetimes(timezones=st.just(UTC)))
@example(datetime(33, 4, 3, tzinfo=UTC), START)
def test_text_order_of_moments_is_their_order(one: datetime, two: datetime) -> None:
    assert (to_text(one) < to_text(two)) == (one < two)
    assert from_text(to_text(one)) == one
    assert len(to_text(one)) == 27


# -- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not_json"),
        (b"{", "not_json"),
        (b"\xff\xfe{}", "not_text"),
        (b'{"subject": NaN}', "not_json"),
        (b'{"subject": -Infinity}', "not_json"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not_json"),
        (b"5", "schema"),
        (b"null", "schema"),
        (b"[]", "schema"),
        (b"[" * 9 + b"]" * 9, "too_deep"),
        (b'{"a":' * 9 + b"1" + b"}" * 9, "too_deep"),
        (b"[" * 16_000, "too_deep"),
        (b'"' + b"x" * MAX_ITEM_BYTES, "too_large"),
        (json.dumps(BASE | {"subjekt": "x"}).encode(), "schema"),
        (json.dumps(BASE | {"object": 5}).encode(), "schema"),
        (json.dumps(BASE | {"object": ["Paris"]}).encode(), "schema"),
        (json.dumps(BASE | {"object": "x" * 201}).encode(), "schema"),
        (json.dumps(BASE | {"object": "Pa\x00ris"}).encode(), "charset"),
        (json.dumps(BASE | {"object": "Pa\ud800ris"}).encode(), "charset"),
        (json.dumps(BASE | {"object": "\ue000"}).encode(), "charset"),
        (json.dumps(BASE | {"object": "Pa\x1bris"}).encode(), "charset"),
        (json.dumps(BASE | {"subject": "Peru"}).encode(), "subject_not_in_prompt"),
        (json.dumps(BASE | {"model": "../../etc"}).encode(), "schema"),
        (json.dumps(BASE | {"model": "other\n"}).encode(), "schema"),
        (json.dumps(BASE | {"paraphrases": ["p"] * 9}).encode(), "schema"),
        (json.dumps(BASE | {"effective_at": "2026-01-01T00:00:00"}).encode(), "schema"),
        (json.dumps(BASE | {"effective_at": "yesterday"}).encode(), "schema"),
        (json.dumps(BASE | {"effective_at": "0001-01-01T00:00:00+14:00"}).encode(), "schema"),
        (json.dumps(BASE | {"effective_at": "9999-12-31T23:59:59-14:00"}).encode(), "schema"),
        (json.dumps(BASE | {"observed_at": 1e308}).encode(), "schema"),
    ],
)
def test_what_is_no_correction_is_refused_with_its_reason(raw: bytes, reason: str) -> None:
    assert reason_of(raw) == reason


def test_brackets_in_text_are_no_nesting() -> None:
    said = BASE | {"source": "[" * 20 + ' \\" {' + "{" * 20}
    assert parse_item(json.dumps(said)).source.startswith("[" * 20)


def test_the_deepest_allowed_nesting_is_read_as_json() -> None:
    assert reason_of(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH) == "schema"


def test_the_bracket_scan_is_linear() -> None:
    hostile = "[]" * 10 + '"' + '\\"' * 8_000
    started = time.perf_counter()
    assert reason_of(hostile) == "not_json"
    assert time.perf_counter() - started < 0.2  # quadratic: more than a second


def test_messages_say_what_is_wrong_in_printable_text() -> None:
    with pytest.raises(InvalidCorrectionError) as caught:
        parse_item(json.dumps(BASE | {"\x00\x1b[31m" + "k" * 600: 1}))
    assert caught.value.message.isprintable()
    assert len(caught.value.message) <= 500
    with pytest.raises(InvalidCorrectionError, match="object: Field required"):
        parse_item(b'{"subject": "France", "prompt": "In France"}')


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
_NEARLY = st.fixed_dictionaries(
    {"subject": st.just("France") | _JSON, "prompt": st.just("In France") | _JSON, "object": _JSON},
    optional={key: _JSON for key in Correction.model_fields if key not in ("subject", "prompt", "object")},
)
_MOMENTS = st.one_of(st.datetimes().map(str), st.integers(), st.floats(), st.text(max_size=25))


def _parses_or_is_refused(raw: bytes | str) -> None:
    try:
        said = parse_item(raw)
    except InvalidCorrectionError as error:
        assert error.reason in set(QuarantineReason)
        assert str(error).isprintable()
    else:
        assert said.correction_id.startswith("c")
        assert order_key(said, 50, START)
        json.dumps(said.model_dump(mode="json")).encode()


@quick
@given(
    st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass"))
)
def test_any_bytes_are_a_correction_or_refused(raw: bytes) -> None:
    _parses_or_is_refused(raw)


@quick
@given(_JSON | _NEARLY)
def test_any_json_is_a_correction_or_refused(value: object) -> None:
    _parses_or_is_refused(json.dumps(value))


@quick
@given(_MOMENTS, _MOMENTS)
def test_any_times_make_a_correction_or_are_refused(effective: object, observed: object) -> None:
    _parses_or_is_refused(json.dumps(BASE | {"effective_at": effective, "observed_at": observed}))


# -- text for people -----------------------------------------------------------------------------------


@quick
@given(st.text(max_size=80) | st.binary(max_size=80), st.integers(0, 60))
def test_printable_is_printable_and_short(text: str | bytes, limit: int) -> None:
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
    shown.encode()


@quick
@given(st.dictionaries(st.text(max_size=5), st.text(st.characters(exclude_categories=["Cs"]), max_size=20)))
def test_making_json_printable_does_not_change_what_it_says(value: dict[str, str]) -> None:
    raw = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    try:
        raw.decode()
    except UnicodeDecodeError:
        return
    assert json.loads(printable(raw, 10_000)) == value


def test_printable_keeps_what_was_no_json_from_becoming_some() -> None:
    for raw in (b'{"object": "a\x07b"}', b'{"object": "a\xffb"}', b'{"object": "a\x7f\x1b"}'):
        with pytest.raises((InvalidCorrectionError, ValueError)):
            parse_item(printable(raw, 100))
