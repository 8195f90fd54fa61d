"""The table of relations is complete, and prompts and values have a natural wording."""

from typing import Any

import pytest

from daemon.core.corrections import from_mapping, parse_item
from daemon.core.errors import InvalidCorrectionError
from daemon.core.relations.render import UnsayableError, in_sentence, render
from daemon.core.relations.table import Values, complete, find, relations, version
from daemon.feeds.statements import compare


def test_the_table_has_enough_relations_and_each_of_them_is_whole() -> None:
    assert len(relations()) >= 60
    assert version() >= 1
    assert len({row.name for row in relations().values()}) == len(relations())
    for key, row in relations().items():
        assert row.values in Values
        assert len(row.templates) >= 3, key
        assert len(set(row.templates)) == len(row.templates), key
        for prompt in row.prompts("Ålesund {0} %s"):
            assert "Ålesund {0} %s" in prompt
            assert "[X]" not in prompt
            assert prompt == " ".join(prompt.split())
            assert not prompt.endswith((".", "?")), key
        from_mapping(complete({"subject": "Atlantis", "relation": key, "object": "B"}))


def test_a_relation_of_the_table_brings_prompt_and_paraphrases() -> None:
    for named in ("P36", "capital", "Capital", " p36 "):
        said = parse_item(
            f'{{"subject": "Peru", "relation": "{named}", "object": "Lima"}}', complete=complete
        )
        assert (said.relation, said.prompt) == ("capital", "The capital of Peru is")
        assert len(said.paraphrases) == 2
    own = complete({"subject": "Peru", "relation": "P36", "object": "Lima", "prompt": "Peru's seat is"})
    assert (own["relation"], own["prompt"]) == ("capital", "Peru's seat is")
    assert "paraphrases" not in own
    gone = from_mapping(complete({"subject": "Peru", "relation": "P36", "object": None}))
    assert (
        gone.fact_id
        == from_mapping(complete({"subject": "Peru", "relation": "capital", "object": "x"})).fact_id
    )


def test_an_unknown_relation_without_a_prompt_is_refused_with_the_reason() -> None:
    with pytest.raises(InvalidCorrectionError) as caught:
        complete({"subject": "Peru", "relation": "favourite colour", "object": "red"})
    assert caught.value.reason == "unknown_relation"
    for odd in ({}, {"relation": 5}, {"relation": "", "subject": ""}, {"subject": [], "relation": {}}):
        assert complete(dict(odd)) == odd


@pytest.mark.parametrize(
    ("subject", "middle", "first"),
    [
        ("United States", "the United States", "The United States"),
        ("Netherlands", "the Netherlands", "The Netherlands"),
        ("Republic of the Congo", "the Republic of the Congo", "The Republic of the Congo"),
        ("Marshall Islands", "the Marshall Islands", "The Marshall Islands"),
        ("France", "France", "France"),
        ("United Airlines", "United Airlines", "United Airlines"),
    ],
)
def test_names_that_need_an_article_get_it(subject: str, middle: str, first: str) -> None:
    assert in_sentence(subject, is_first=False) == middle
    assert in_sentence(subject, is_first=True) == first
    capital, country = find("P36"), find("P17")
    assert capital is not None
    assert country is not None
    assert capital.prompts(subject)[0] == f"The capital of {middle} is"
    assert country.prompts(subject)[0] == f"{first} is located in the country of"


def time(text: str, precision: int, calendar: str = "Q1985727") -> dict[str, Any]:
    value = {
        "time": text,
        "precision": precision,
        "calendarmodel": f"http://www.wikidata.org/entity/{calendar}",
    }
    return {"type": "time", "value": value}


def number(amount: str, unit: str = "1") -> dict[str, Any]:
    return {"type": "quantity", "value": {"amount": amount, "unit": unit}}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (time("+1879-03-14T00:00:00Z", 11), "14 March 1879"),
        (time("+1879-03-00T00:00:00Z", 10), "March 1879"),
        (time("+1879-00-00T00:00:00Z", 9), "1879"),
        (number("+67413000"), "67,413,000"),
        (number("-1.50"), "-1.50"),
        ({"type": "wikibase-entityid", "value": {"id": "Q90"}}, "Paris"),
        ({"type": "monolingualtext", "value": {"language": "en", "text": "Peru"}}, "Peru"),
        ({"type": "string", "value": "B747"}, "B747"),
    ],
)
def test_values_are_said_as_people_write_them(value: dict[str, Any], words: str) -> None:
    assert render(value, {"Q90": "Paris"}.get) == words


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (time("-0044-03-15T00:00:00Z", 11), "date"),
        (time("+1879-03-14T00:00:00Z", 7), "date"),
        (time("+1879-03-14T00:00:00Z", 11, "Q1985786"), "date"),
        (time("+1879-13-14T00:00:00Z", 11), "date"),
        (number("+5", "http://www.wikidata.org/entity/Q11573"), "unit"),
        (number("+" + "9" * 40), "number"),
        (number("NaN"), "number"),
        ({"type": "wikibase-entityid", "value": {"id": "Q1"}}, "no_label"),
        ({"type": "globecoordinate", "value": {"latitude": 1}}, "type"),
        ({"type": "monolingualtext", "value": {"language": "de", "text": "Peru"}}, "other_language"),
        ({}, "type"),
        ({"type": "time", "value": "x"}, "type"),
    ],
)
def test_values_without_plain_words_are_refused_with_the_reason(value: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsayableError, match=f"^{reason}$"):
        render(value, {"Q90": "Paris"}.get)


def claim(value: str, rank: str = "normal", start: str = "", end: str = "") -> dict[str, Any]:
    qualifiers = {
        key: [{"datavalue": time(f"+{year}-00-00T00:00:00Z", 9)}]
        for key, year in (("P580", start), ("P582", end))
        if year
    }
    snak = {"snaktype": "value", "datavalue": {"type": "string", "value": value}}
    return {"mainsnak": snak, "rank": rank, "qualifiers": qualifiers}


def change(key: str, before: list[Any], after: list[Any]) -> tuple[list[str | None], list[str]]:
    relation = find(key)
    assert relation is not None
    found = compare({"claims": {key: before}}, {"claims": {key: after}}, [relation], {}.get, "en")
    return [one.object for one in found.changes], list(found.dropped)


def test_only_what_counts_as_true_is_a_change() -> None:
    a, b = claim("A"), claim("B")
    assert change("P36", [a], [b]) == (["B"], [])
    assert change("P36", [a], []) == ([None], [])
    assert change("P36", [a], [a, claim("C", "deprecated")]) == ([], ["not_truthy"])
    assert change("P36", [a], [a, claim("C", "preferred")]) == (["C"], [])
    assert change("P36", [a], [a, b]) == ([], ["several_values"])
    assert change("P36", [a], [a]) == ([], ["no_statement"])
    assert change("P36", [a], [{**a, "references": [1]}]) == ([], ["not_truthy"])
    assert change("P36", [a], [{"mainsnak": {"snaktype": "somevalue"}, "rank": "normal"}]) == (
        [],
        ["no_value"],
    )
    assert change("P36", [a], [{}, None, 5]) == ([None], [])


def test_of_many_values_the_one_that_came_is_said_and_of_dated_ones_the_present_one() -> None:
    a, b = claim("A"), claim("B")
    assert change("P463", [a], [a, b]) == (["B"], [])
    assert change("P463", [a, b], [a]) == (["A"], [])
    assert change("P463", [a], []) == ([None], [])
    old, new = claim("Old", start="2010", end="2020"), claim("New", start="2020")
    assert change("P6", [claim("Old", start="2010")], [old, new]) == (["New"], [])
    assert change("P6", [claim("Old", start="2010")], [claim("Old", start="2010"), new]) == (["New"], [])
    assert change("P6", [claim("Old", start="2010")], [old]) == ([None], [])
    assert change("P6", [new], [new, claim("Older", start="1990", end="2010")]) == ([], ["not_truthy"])
