"""Compare two revisions of a Wikidata entity, and word the changes that a model can be taught."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daemon.core.relations.render import UnsayableError, render
from daemon.core.relations.table import Relation, Values

_START, _END = "P580", "P582"  # the qualifiers start time and end time
Entity = Mapping[str, Any]
Statements = Sequence[Mapping[str, Any]]
Labels = Callable[[str], str | None]


@dataclass(frozen=True)
class Change:
    """One fact that changed, with None for a value that is no longer true and was not replaced."""

    relation: Relation
    object: str | None


@dataclass(frozen=True)
class Difference:
    """The facts that one edit changed, and a closed word for each change that is no fact."""

    changes: tuple[Change, ...]
    dropped: tuple[str, ...]


def truthy(entity: Entity, property_: str) -> list[Mapping[str, Any]]:
    """Return the preferred statements, else the normal ones, and never deprecated ones."""
    claims = entity.get("claims")
    listed = claims.get(property_, []) if isinstance(claims, Mapping) else []
    statements = [one for one in listed if isinstance(one, Mapping)]
    for rank in ("preferred", "normal"):
        best = [one for one in statements if one.get("rank") == rank]
        if best:
            return best
    return []


def compare(
    before: Entity, after: Entity, relations: Iterable[Relation], label: Labels, language: str
) -> Difference:
    """Return the facts of the given relations in which ``after`` differs from ``before``."""
    changes: list[Change] = []
    dropped: list[str] = []
    for relation in relations:
        old, new = current(before, relation), current(after, relation)
        if _values(old) == _values(new):
            if _raw(before, relation) != _raw(after, relation):
                dropped.append("not_truthy")
            continue
        try:
            changes.append(Change(relation, _wording(old, new, relation, label, language)))
        except UnsayableError as error:
            dropped.append(str(error))
    if not changes and not dropped:
        dropped.append("no_statement")
    return Difference(tuple(changes), tuple(dropped))


def current(entity: Entity, relation: Relation) -> list[Mapping[str, Any]]:
    """Return the truthy statements, of a dated relation those without an end that began last."""
    statements = truthy(entity, relation.property)
    if relation.values is not Values.DATED:
        return statements
    open_ = [one for one in statements if not _qualifier(one, _END)]
    begun = max((_qualifier(one, _START) for one in open_), default="")
    return [one for one in open_ if _qualifier(one, _START) == begun]


def _wording(
    old: Sequence[Mapping[str, Any]],
    new: Sequence[Mapping[str, Any]],
    relation: Relation,
    label: Labels,
    language: str,
) -> str | None:
    """Return the wording of the value that was added, else of one that is left, or None.

    Raises UnsayableError if no single value can be put into words.
    """
    if not new:
        return None
    known = set(_values(old))
    came = [one for one in new if _value(one) not in known] or list(new)
    if relation.values is not Values.MANY and len({_value(one) for one in new}) > 1:
        raise UnsayableError("several_values")
    chosen = came[-1].get("mainsnak")
    if not isinstance(chosen, Mapping) or chosen.get("snaktype") != "value":
        raise UnsayableError("no_value")
    value = chosen.get("datavalue")
    if not isinstance(value, Mapping):
        raise UnsayableError("no_value")
    return render(value, label, language)


def entities_in(before: Entity, after: Entity, relations: Iterable[Relation]) -> set[str]:
    """Return the ids of the entities in the changed statements, so that labels are fetched together."""
    ids = set()
    for relation in relations:
        old, new = current(before, relation), current(after, relation)
        if _values(old) == _values(new):
            continue
        for statement in new:
            value = (statement.get("mainsnak") or {}).get("datavalue") or {}
            content = value.get("value") if isinstance(value, Mapping) else None
            if isinstance(content, Mapping) and isinstance(content.get("id"), str):
                ids.add(content["id"])
    return ids


def _values(statements: Iterable[Mapping[str, Any]]) -> list[str]:
    return sorted(_value(one) for one in statements)


def _value(statement: Mapping[str, Any]) -> str:
    """Return the value as text, without references and qualifiers."""
    snak = statement.get("mainsnak")
    if not isinstance(snak, Mapping):
        return ""
    return f"{snak.get('snaktype')} {_stable(snak.get('datavalue') or {})}"


def _stable(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_stable(value[key])}" for key in sorted(value)) + "}"
    return repr(value)


def _raw(entity: Entity, relation: Relation) -> Any:
    claims = entity.get("claims")
    return claims.get(relation.property) if isinstance(claims, Mapping) else None


def _qualifier(statement: Mapping[str, Any], property_: str) -> str:
    """Return the time of a qualifier as text that sorts, or an empty string."""
    qualifiers = statement.get("qualifiers")
    snaks = qualifiers.get(property_) if isinstance(qualifiers, Mapping) else None
    for snak in snaks or []:
        value = (snak.get("datavalue") or {}).get("value") if isinstance(snak, Mapping) else None
        if isinstance(value, Mapping):
            return str(value.get("time", "?"))
        return "?"
    return ""
