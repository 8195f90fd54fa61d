"""Corrections in normal form, their ids, and the order among the corrections of one fact."""

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
# An unclosed string matches to the end, so that no quote is matched twice and the time is linear.
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+\\?(?:"|\Z)', re.DOTALL)
_ANY_TIME = datetime(1970, 1, 1, tzinfo=UTC)
_PLACE = "\N{LARGE CIRCLE}"  # replaces the subject in a relation that is derived from a prompt


def _normal_text(value: object) -> object:
    """Return text in NFC with single spaces, and any other value unchanged."""
    if not isinstance(value, str):
        return value
    text = " ".join((value if value.isascii() else unicodedata.normalize("NFC", value)).split())
    if text.isprintable():  # the common case, much faster than the loop
        return text
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs", "Cn", "Co"):
            raise ValueError(f"character U+{ord(character):04X} is not allowed in text")
    return text


def _in_utc(moment: datetime) -> datetime:
    """Convert a moment to UTC."""
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("time is out of range in UTC") from error


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
# in this order pydantic makes the normal form first and checks the limits natively
Text = Annotated[
    str, StringConstraints(min_length=1, max_length=200, strict=True), BeforeValidator(_normal_text)
]
Prompt = Annotated[
    str, StringConstraints(min_length=1, max_length=500, strict=True), BeforeValidator(_normal_text)
]


class Correction(BaseModel):
    """One statement from a feed, in normal form.

    ``object`` is the new value. None means that the fact is no longer true and takes it out of the weights.
    ``effective_at`` is when the statement became true, ``observed_at`` when the source published it.
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
        """The id of the fact, made of model, subject and relation, that this correction is about."""
        return "f" + _digest(self.model, self.subject.casefold(), self.relation.casefold())

    @property
    def correction_id(self) -> str:
        """The id of the statement, made of its value, prompt, source and times.

        Everything that ``order_key`` compares is part of it, so that a source may return to an earlier value.
        The feed that delivered the statement and its spelling are not part of it.
        """
        return identify(self, 0, _ANY_TIME).correction_id


@dataclass(frozen=True)
class Identity:
    """The id of a correction, the id of its fact, and its sort key within the fact."""

    fact_id: str
    correction_id: str
    order_key: str


def identify(correction: Correction, trust: int, now: datetime) -> Identity:
    """Return both ids and the order key, with ``now`` as the time of a correction without times."""
    fact_id, source = correction.fact_id, correction.source
    effective = to_text(correction.effective_at) if correction.effective_at else ""
    observed = to_text(correction.observed_at) if correction.observed_at else ""
    absent = str(correction.object is None)
    parts = (fact_id, correction.object or "", absent, correction.prompt, source, effective, observed)
    correction_id = "c" + _digest(*parts)
    observed = observed or effective or to_text(now)
    key = (effective or observed, observed, f"{trust:03d}", source, correction_id)
    return Identity(fact_id, correction_id, "|".join(key))


def effective_time(order_key: str) -> datetime:
    """Return the time from which a correction is true, as ``identify`` wrote it into its order key."""
    return from_text(order_key.partition("|")[0])


def order_key(correction: Correction, trust: int, now: datetime) -> str:
    """Return the sort key of a correction within its fact, of which the greatest wins.

    It holds effective time, observed time, trust, source and id in this order. The order is total, so the
    outcome does not depend on the order of arrival.
    """
    return identify(correction, trust, now).order_key


def parse_item(
    raw: bytes | str,
    model: str = DEFAULT_MODEL,
    complete: Callable[[dict[str, Any]], dict[str, Any]] = lambda item: item,
) -> Correction:
    """Parse one item of a feed, with ``model`` as the default model.

    ``complete`` may add fields to the decoded item, such as a relation's prompt. Raises
    InvalidCorrectionError if the item is not a correction, and no other error for any bytes.
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
    """Make a correction of a decoded JSON value, or raise InvalidCorrectionError if it is none."""
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
    """Return the quarantine reason and one line of text about the first three problems."""
    problems = error.errors(include_url=False, include_input=False)
    parts = [f"{'.'.join(str(at) for at in p['loc']) or 'item'}: {p['msg']}" for p in problems[:3]]
    charset = any("is not allowed in text" in p["msg"] for p in problems)
    reason = QuarantineReason.CHARSET if charset else QuarantineReason.SCHEMA
    return reason, printable("; ".join(parts), 500)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)


def _depth(text: str) -> int:
    """Return the deepest nesting of brackets outside strings, without recursion."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return 0
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", _STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _digest(*parts: str) -> str:
    """Return 20 hex digits of the sha256 of the parts as a JSON list, which keeps their boundaries."""
    # json.dumps takes three times as long
    listed = "[" + ", ".join(map(encode_basestring_ascii, parts)) + "]"
    return hashlib.sha256(listed.encode()).hexdigest()[:20]
