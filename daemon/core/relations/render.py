"""The wording of Wikidata values: names, dates and numbers."""

import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_WITH_ARTICLE = re.compile(
    r"(?:United (?:States|Kingdom|Nations|Arab Emirates)\b|Netherlands\b|Philippines\b|Bahamas\b|Maldives\b"
    r"|Gambia\b|Vatican\b|Czech Republic\b|Dominican Republic\b|Central African Republic\b"
    r"|(?:[\w' -]+ )?(?:Republic|Kingdom|Emirate|Commonwealth|Federation) of\b"
    r"|European (?:Union|Commission|Parliament|Central Bank)\b|(?:\w+ )?Islands\b)"
)
_TIME = re.compile(r"\+(\d{4,})-(\d\d)-(\d\d)T00:00:00Z")
_GREGORIAN = "http://www.wikidata.org/entity/Q1985727"
_DAY, _MONTH, _YEAR = 11, 10, 9  # Wikidata's precisions
_LONGEST_NUMBER = 30


class UnsayableError(ValueError):
    """A value has no plain wording, for the reason in the message, which is a closed word."""


def in_sentence(subject: str, *, is_first: bool) -> str:
    """Return the subject with its article, if its name needs one."""
    if not _WITH_ARTICLE.match(subject):
        return subject
    return ("The " if is_first else "the ") + subject


def render(value: Mapping[str, Any], label: Callable[[str], str | None], language: str = "en") -> str:
    """Return the wording of a ``datavalue``, with names of entities from ``label``.

    Raises UnsayableError for an entity without a name, a date that is coarse or before our era, a quantity
    with a unit, and a type without wording.
    """
    kind, content = value.get("type"), value.get("value")
    if kind == "wikibase-entityid" and isinstance(content, Mapping):
        name = label(str(content.get("id", "")))
        if not name:
            raise UnsayableError("no_label")
        return name
    if kind == "time" and isinstance(content, Mapping):
        return _date(content)
    if kind == "quantity" and isinstance(content, Mapping):
        return _number(content)
    if kind == "monolingualtext" and isinstance(content, Mapping):
        if content.get("language") != language:
            raise UnsayableError("other_language")
        return str(content.get("text", ""))
    if kind == "string" and isinstance(content, str):
        return content
    raise UnsayableError("type")


def _date(time: Mapping[str, Any]) -> str:
    """Return a Gregorian date of our era as 14 March 1879, March 1879 or 1879."""
    match = _TIME.fullmatch(str(time.get("time", "")))
    precision = time.get("precision")
    if match is None or time.get("calendarmodel") != _GREGORIAN or precision not in (_DAY, _MONTH, _YEAR):
        raise UnsayableError("date")
    year, month, day = (int(part) for part in match.groups())
    if precision == _YEAR:
        return str(year)
    if not 1 <= month <= 12 or (precision == _DAY and not 1 <= day <= 31):
        raise UnsayableError("date")
    named = f"{_MONTHS[month - 1]} {year}"
    return named if precision == _MONTH else f"{day} {named}"


def _number(quantity: Mapping[str, Any]) -> str:
    """Return a number without unit as 12,345 or 1.5."""
    amount = str(quantity.get("amount", ""))
    if quantity.get("unit") != "1":
        raise UnsayableError("unit")
    if len(amount) > _LONGEST_NUMBER or not re.fullmatch(r"[+-]?\d+(?:\.\d+)?", amount):
        raise UnsayableError("number")
    try:
        number = Decimal(amount)
    except InvalidOperation as error:
        raise UnsayableError("number") from error
    return f"{number:,}"
