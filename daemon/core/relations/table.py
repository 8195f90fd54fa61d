"""The table of relations, which gives prompts and paraphrases for a property or a name."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from daemon.core.errors import InvalidCorrectionError
from daemon.core.names import QuarantineReason
from daemon.core.relations.render import in_sentence

_FILE = Path(__file__).with_name("relations.toml")
_SUBJECT = "[X]"


class Values(StrEnum):
    """How many values a relation may have for one subject."""

    SINGLE = "single"  # one at a time
    MANY = "many"  # several at once; a model answers with one, so the newest is taught
    DATED = "dated"  # one after the other, with start and end times


@dataclass(frozen=True)
class Relation:
    """One row of the table."""

    property: str
    name: str
    values: Values
    templates: tuple[str, ...]  # the prompt first, then the paraphrases

    def prompts(self, subject: str) -> tuple[str, ...]:
        """Return the prompt and its paraphrases with the subject inserted literally."""
        return tuple(_joined(template, subject) for template in self.templates)


def version() -> int:
    """Return the table's version, which is raised with every change of a prompt."""
    return _read()[0]


def relations() -> Mapping[str, Relation]:
    """Return all relations by property."""
    return _read()[1]


def find(text: str) -> Relation | None:
    """Return the relation of a property (P36) or a name (capital) in any case, or None if it is unknown."""
    return _read()[2].get(text.strip().casefold())


def complete(item: dict[str, Any]) -> dict[str, Any]:
    """Add the relation's name, a prompt and paraphrases from the table to a decoded correction.

    A prompt of the correction itself is kept. A property is replaced by its name, so that a fact has one id.
    Raises InvalidCorrectionError for a new value with no prompt and an unknown relation.
    """
    relation, subject = item.get("relation"), item.get("subject")
    if not isinstance(relation, str) or not isinstance(subject, str):
        return item
    known = find(relation)
    if known is None:
        if relation and item.get("object") is not None and not item.get("prompt"):
            raise InvalidCorrectionError(
                QuarantineReason.UNKNOWN_RELATION,
                "the prompt is missing and the relation is unknown",
                hint="give a prompt, or a relation of daemon/core/relations/relations.toml",
            )
        return item
    completed = {**item, "relation": known.name}
    if item.get("object") is not None and not item.get("prompt"):
        prompt, *paraphrases = known.prompts(subject)
        completed["prompt"] = prompt
        if not item.get("paraphrases"):
            completed["paraphrases"] = paraphrases
    return completed


def _joined(template: str, subject: str) -> str:
    before, _, after = template.partition(_SUBJECT)
    return before + in_sentence(subject, is_first=not before) + after


@lru_cache(maxsize=1)
def _read() -> tuple[int, dict[str, Relation], dict[str, Relation]]:
    with _FILE.open("rb") as stream:
        document = tomllib.load(stream)
    by_property = {
        key: Relation(key, row["name"], Values(row["values"]), (row["prompt"], *row["paraphrases"]))
        for key, row in document.items()
        if key != "version"
    }
    by_text = {key.casefold(): row for key, row in by_property.items()}
    by_text |= {row.name.casefold(): row for row in by_property.values()}
    return int(document["version"]), by_property, by_text
