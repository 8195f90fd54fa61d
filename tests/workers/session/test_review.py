"""Which older facts a turn asks."""

from collections import Counter

from workers.revisions.facts import Fact
from workers.session.review import choose


def fact(subject: str, prompt: str = "", target: str = "x") -> Fact:
    return Fact(subject, subject, subject, prompt, target)


def test_in_time_every_fact_is_asked_equally_often() -> None:
    facts = [fact(str(i)) for i in range(10)]
    asked = Counter(one.subject for turn in range(10) for one in choose(facts, 4, turn))
    assert set(asked.values()) == {4}


def test_no_fact_is_asked_twice_in_a_turn() -> None:
    facts = [fact(str(i)) for i in range(3)]
    assert len(choose(facts, 5, 7)) == 3
    assert len({one.subject for one in choose(facts, 5, 7)}) == 3


def test_none_are_asked_when_there_are_none_or_review_is_off() -> None:
    assert choose([], 4, 3) == []
    assert choose([fact("a")], 0, 3) == []
