"""The table of relations: property or name to prompt, paraphrases and how many values there may be."""

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
    MANY = "many"  # several at once; the model can answer with one, so the newest is the one it is taught
    DATED = "dated"  # one after the other, told apart by start and end times


@dataclass(frozen=True)
class Relation:
    """One row of the table."""

    property: str
    name: str
    values: Values
    templates: tuple[str, ...]  # the prompt first, then the paraphrases

    def prompts(self, subject: str) -> tuple[str, ...]:
        """The prompt and its paraphrases about a subject, joined around it literally."""
        return tuple(_joined(template, subject) for template in self.templates)


def version() -> int:
    """The table's version; it is raised with every change of a prompt."""
    return _read()[0]


def relations() -> Mapping[str, Relation]:
    """All relations by property."""
    return _read()[1]


def find(text: str) -> Relation | None:
    """The relation of a property (P36) or a name (capital), in any case; None: the table does not have it."""
    return _read()[2].get(text.strip().casefold())


def complete(said: dict[str, Any]) -> dict[str, Any]:
    """A decoded correction with what the table can add: the relation's name, a prompt, paraphrases.

    A prompt of its own is kept. So that a fact is one fact, a property is always called by its name.

    Raises:
        InvalidCorrectionError: it has a new value, no prompt, and a relation that the table does not have.
    """
    relation, subject = said.get("relation"), said.get("subject")
    if not isinstance(relation, str) or not isinstance(subject, str):
        return said
    known = find(relation)
    if known is None:
        if relation and said.get("object") is not None and not said.get("prompt"):
            raise InvalidCorrectionError(
                QuarantineReason.UNKNOWN_RELATION,
                "prompt is missing, and the relation is not one of the table",
                hint="give a prompt, or a relation of daemon/core/relations/relations.toml",
            )
        return said
    completed = {**said, "relation": known.name}
    if said.get("object") is not None and not said.get("prompt"):
        prompt, *paraphrases = known.prompts(subject)
        completed["prompt"] = prompt
        if not said.get("paraphrases"):
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
