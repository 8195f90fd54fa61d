"""What a feed says: one correction, its normal form, its identity and the fact it is about."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    StringConstraints,
    ValidationError,
    model_validator,
)

from daemon.core.clock import from_text, to_text
from daemon.core.errors import InvalidCorrectionError
from daemon.core.names import DEFAULT_MODEL, NAME_PATTERN, QuarantineReason
from daemon.core.text import printable

MAX_ITEM_BYTES = 16_384
MAX_DEPTH = 8
# An unclosed string runs to the end, so that no quote is looked at twice: linear whatever the text is.
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+\\?(?:"|\Z)', re.DOTALL)
_ANY_TIME = datetime(1970, 1, 1, tzinfo=UTC)
_PLACE = "\N{LARGE CIRCLE}"  # stands for the subject in a relation derived from a prompt


def _normal_text(value: object) -> object:
    """NFC, single spaces, no control or unassigned characters; anything but text goes on unchanged."""
    if not isinstance(value, str):
        return value
    text = " ".join((value if value.isascii() else unicodedata.normalize("NFC", value)).split())
    if text.isprintable():  # the common case, at the speed of C
        return text
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs", "Cn", "Co"):
            raise ValueError(f"character U+{ord(character):04X} is not allowed in text")
    return text


def _in_utc(moment: datetime) -> datetime:
    """The same moment in UTC; those that only exist in another zone's year 0 or 10000 are refused."""
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("time is out of range in UTC") from error


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
# the limits stand first, so that they are checked natively, after the normal form was made
Text = Annotated[
    str, StringConstraints(min_length=1, max_length=200, strict=True), BeforeValidator(_normal_text)
]
Prompt = Annotated[
    str, StringConstraints(min_length=1, max_length=500, strict=True), BeforeValidator(_normal_text)
]


class Correction(BaseModel):
    """One statement from a feed, in normal form.

    ``object`` is the new value; None says «no longer true» and takes the fact out of the weights.
    ``effective_at`` is when the statement became true, ``observed_at`` when the source said so.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    subject: Text
    object: Text | None
    prompt: Prompt = ""
    relation: Text = ""
    paraphrases: tuple[Prompt, ...] = ()
    neighborhood: tuple[Prompt, ...] = ()
    source: Prompt = "unknown"
    effective_at: Moment | None = None
    observed_at: Moment | None = None
    model: Annotated[str, StringConstraints(pattern=NAME_PATTERN)] = DEFAULT_MODEL

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if len(self.paraphrases) > 8 or len(self.neighborhood) > 8:
            raise ValueError("at most 8 paraphrases and 8 neighborhood prompts")
        if not self.prompt and self.object is not None:
            raise ValueError("prompt is missing")
        if not self.prompt and not self.relation:
            raise ValueError("relation or prompt is missing")
        if not self.relation:
            object.__setattr__(self, "relation", self.prompt.replace(self.subject, _PLACE))
        return self

    @property
    def fact_id(self) -> str:
        """The slot (model, subject, relation) that this correction is about: its conflict key."""
        return "f" + _digest(self.model, self.subject.casefold(), self.relation.casefold())

    @property
    def correction_id(self) -> str:
        """The statement's identity: what is said, by which source, with which times.

        All that ``order_key`` weighs is part of it, so that a source that comes back to a former value is
        heard; which feed delivered it, and how it was written, do not matter.
        """
        return identify(self, 0, _ANY_TIME).correction_id


@dataclass(frozen=True)
class Identity:
    """What a correction is known by: its own id, that of its fact, and its place in the fact's order."""

    fact_id: str
    correction_id: str
    order_key: str


def identify(said: Correction, trust: int, now: datetime) -> Identity:
    """Both ids and the order key in one go; a correction without times counts as said at ``now``."""
    fact_id = said.fact_id
    effective = to_text(said.effective_at) if said.effective_at else ""
    observed = to_text(said.observed_at) if said.observed_at else ""
    absent = str(said.object is None)
    parts = (fact_id, said.object or "", absent, said.prompt, said.source, effective, observed)
    correction_id = "c" + _digest(*parts)
    observed = observed or effective or to_text(now)
    key = (effective or observed, observed, f"{trust:03d}", said.source, correction_id)
    return Identity(fact_id, correction_id, "|".join(key))


def effective_time(order_key: str) -> datetime:
    """Return the time from which a correction is true, as ``identify`` wrote it into its order key."""
    return from_text(order_key.partition("|")[0])


def order_key(correction: Correction, trust: int, now: datetime) -> str:
    """Text whose order is the total order of a fact's corrections; the greatest wins.

    Order: effective time, observed time, trust, source, identity; so any order of arrival ends alike.
    """
    return identify(correction, trust, now).order_key


def parse_item(
    raw: bytes | str,
    model: str = DEFAULT_MODEL,
    complete: Callable[[dict[str, Any]], dict[str, Any]] = lambda said: said,
) -> Correction:
    """A correction from one item of a feed; ``model`` is meant where the item names none.

    ``complete`` may add to the decoded item what it knows, such as a relation's prompt.

    Raises:
        InvalidCorrectionError: with a closed ``reason``; never anything else, whatever the bytes are.
    """
    if len(raw) > MAX_ITEM_BYTES:
        raise InvalidCorrectionError(QuarantineReason.TOO_LARGE, f"longer than {MAX_ITEM_BYTES} bytes")
    try:
        text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
    except UnicodeDecodeError as error:
        raise InvalidCorrectionError(QuarantineReason.NOT_TEXT, "not UTF-8") from error
    if _depth(text) > MAX_DEPTH:
        raise InvalidCorrectionError(QuarantineReason.TOO_DEEP, f"nested deeper than {MAX_DEPTH}")
    try:
        value = _JSON.decode(text)
    except ValueError as error:
        raise InvalidCorrectionError(QuarantineReason.NOT_JSON, f"not JSON: {error}") from error
    return from_mapping(complete({"model": model, **value}) if isinstance(value, dict) else value)


def from_mapping(value: Any) -> Correction:
    """A correction from a decoded JSON value.

    Raises:
        InvalidCorrectionError: the value does not have the form of a correction.
    """
    try:
        correction = Correction.model_validate(value)
    except ValidationError as error:
        raise InvalidCorrectionError(*_explain(error)) from error
    if correction.object is not None and correction.subject not in correction.prompt:
        raise InvalidCorrectionError(
            QuarantineReason.SUBJECT_NOT_IN_PROMPT, "the prompt does not contain the subject literally"
        )
    return correction


def _explain(error: ValidationError) -> tuple[QuarantineReason, str]:
    """The closed reason and one line of text for the first things that are wrong."""
    problems = error.errors(include_url=False, include_input=False)
    parts = [f"{'.'.join(str(at) for at in p['loc']) or 'item'}: {p['msg']}" for p in problems[:3]]
    charset = any("is not allowed in text" in p["msg"] for p in problems)
    return (QuarantineReason.CHARSET if charset else QuarantineReason.SCHEMA), printable(
        "; ".join(parts), 500
    )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)


def _depth(text: str) -> int:
    """The deepest nesting of brackets outside strings, found without recursion."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return 0
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", _STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _digest(*parts: str) -> str:
    """20 hex digits of sha256 over the parts, unambiguous about where each ends."""
    listed = (
        "[" + ", ".join(map(encode_basestring_ascii, parts)) + "]"
    )  # as json.dumps, at a third of its cost
    return hashlib.sha256(listed.encode()).hexdigest()[:20]
