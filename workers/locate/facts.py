"""Facts that most models know, to be traced, and edits of them, to try a pair of layers."""

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from daemon.core.errors import ConfigError
from workers.bench.facts import BenchFact
from workers.editing.model import EditableModel
from workers.editing.prompts import EditRequest

_FIELDS = ("relation", "subject", "prompt", "answer", "paraphrase")
_LEAST = 12  # known facts: a third is edited to choose, a third to check, a third must not change


@dataclass(frozen=True)
class KnownFact:
    """A fact whose ``answer`` follows ``prompt``, which contains ``subject``, and ``paraphrase``."""

    relation: str
    subject: str
    prompt: str
    answer: str
    paraphrase: str


@dataclass(frozen=True)
class Trial:
    """Edits for comparing pairs of layers, and others for checking the choice."""

    sweep: list[BenchFact]
    check: list[BenchFact]


def read_known(path: Path | None) -> list[KnownFact]:
    """Read the shipped facts, or a file of JSON lines with the fields of ``KnownFact``.

    Raises ConfigError if the file cannot be read or a line is no such fact.
    """
    name = str(path or "the shipped facts")
    try:
        shipped = resources.files("workers.locate") / "data" / "known.jsonl"
        text = (path or shipped).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    facts = [_known(line, f"{name}, line {n}") for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not facts:
        raise ConfigError(f"{name} holds no facts")
    return facts


def _known(line: str, where: str) -> KnownFact:
    hint = f"an object with the texts {', '.join(_FIELDS)}; the prompt contains the subject"
    try:
        record = json.loads(line)
        fact = KnownFact(*(record[name] for name in _FIELDS))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{where} is no fact: {error}", hint=hint) from error
    texts = all(isinstance(one, str) and one.strip() for one in vars(fact).values())
    if not texts or fact.subject not in fact.prompt:
        raise ConfigError(f"{where} is no fact", hint=hint)
    return fact


def answered(model: EditableModel, facts: Sequence[KnownFact]) -> list[KnownFact]:
    """Return the facts of which the model knows every token, or raise ConfigError if they are too few."""
    _, right = model.target_scores([fact.prompt for fact in facts], [fact.answer for fact in facts])
    known = [fact for fact, knows in zip(facts, right.tolist(), strict=True) if knows]
    if len(known) < _LEAST:
        raise ConfigError(
            f"the model answers {len(known)} of {len(facts)} facts, {_LEAST} are needed",
            hint="name a file of facts that it knows by --facts",
        )
    return known


def make_trial(known: Sequence[KnownFact], size: int, seed: int) -> Trial:
    """Make two sets of at most ``size`` edits, each to the answer of another fact of its relation.

    The neighborhood is another subject of the same relation, whose answer is not the new object. At least a
    third of each relation is not edited, to serve as such. Raises ConfigError if none has facts enough.
    """
    chance = random.Random(seed)
    relations: dict[str, list[KnownFact]] = defaultdict(list)
    for fact in known:
        relations[fact.relation].append(fact)
    edits: list[list[BenchFact]] = []
    for group in relations.values():
        chance.shuffle(group)
        kept = group[: -(-len(group) // 3)]
        made = [_edit(fact, group, kept, chance) for fact in group[len(kept) :]]
        edits.append([one for one in made if one is not None])
    in_turn = [one for place in range(len(known)) for group in edits for one in group[place : place + 1]]
    count = min(size, len(in_turn) // 2)
    if count == 0:
        raise ConfigError(
            "no relation has facts enough to edit",
            hint="a relation needs four known facts with two different answers",
        )
    return Trial(in_turn[0 : 2 * count : 2], in_turn[1 : 2 * count : 2])


def _edit(
    fact: KnownFact, group: Sequence[KnownFact], kept: Sequence[KnownFact], chance: random.Random
) -> BenchFact | None:
    """Return the fact with another answer of its relation, and a neighbor that keeps its own."""
    others = sorted({one.answer for one in group} - {fact.answer})
    if not others:
        return None
    new = chance.choice(others)
    neighbors = [one for one in kept if one.answer != new]
    if not neighbors:
        return None
    neighbor = chance.choice(neighbors)
    request = EditRequest(f"{fact.relation}: {fact.subject}", fact.subject, fact.prompt, new)
    return BenchFact(request, fact.answer, fact.paraphrase, neighbor.prompt, neighbor.answer)
