"""A feed of changed statements in Wikidata: a stream lists revisions, the entity API their contents."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard
from urllib.parse import urlencode

from daemon.core.config.feeds import WikidataFeedConfig
from daemon.core.corrections import MAX_ITEM_BYTES
from daemon.core.errors import FeedError
from daemon.core.relations.table import Relation, find, relations
from daemon.feeds.base import Cursor, Pull, RawItem
from daemon.feeds.guard import Web
from daemon.feeds.sse import Event, EventStream
from daemon.feeds.statements import Entity, compare, entities_in

_AT_ONCE = 24  # edits resolved by one request: two revisions each, and the API takes 50
_IDS = 50  # ids in one request, the most that the API takes
_LABELS = 20_000  # kept in memory, a few MiB; the oldest are dropped
_NO_FACT = re.compile(
    r"/\* (?:wb(?:set|remove)(?P<part>qualifier|reference)"
    r"|wb(?:set|add|remove)?(?P<text>label|description|alias)|(?:wbset|client)sitelink)"
)
_PROPERTY = re.compile(r"\[\[Property:(P[1-9]\d{0,9})\]\]")
_ITEM = re.compile(r"Q[1-9]\d{0,11}")
Reason = str  # why an event is dropped, one closed word; empty where it is not


@dataclass(frozen=True)
class Edit:
    """One edit of an item that may have changed a statement."""

    item: str
    old: int
    new: int
    at: str
    property: str  # empty: the edit may have touched several


class WikidataFeed:
    """Changes of statements in the configured relations, in the order of the stream.

    Events about no fact are dropped and counted by reason in the cursor, beside the id from which the stream
    is resumed. The cursor is committed with the admitted items, so nothing is lost or counted twice.
    """

    def __init__(self, config: WikidataFeedConfig) -> None:
        self.name, self.trust, self._config = config.name, config.trust, config
        self._web = Web.of(config, config.api_url, config.url)
        self._stream = EventStream(self._web, config.url, self._read)
        known = [find(name) for name in config.relations] if config.relations else relations().values()
        self._relations = {one.property: one for one in known if one is not None}
        self._labels: dict[str, str | None] = {}

    def pull(self, cursor: Cursor, limit: int) -> Pull:
        """Return the facts of the next events, of which at most ``limit`` are read.

        Raises FeedError if the stream or the entity API cannot be read now.
        """
        after = str(cursor.get("last_event_id", ""))
        events = self._stream.take(after, limit)
        if not events:
            return Pull([], cursor, more=False)
        try:
            items, dropped = self._resolve(events)
        except FeedError:
            self._stream.forget()
            raise
        counts: Counter[str] = Counter(cursor.get("dropped", {}))
        counts.update(dropped)
        counts["events"] += len(events)
        reached: Cursor = {"last_event_id": events[-1].id, "dropped": dict(sorted(counts.items()))}
        return Pull(items, reached, more=len(events) == limit)

    def _read(self, data: str) -> Edit | Reason | RawItem:
        """Return the edit that an event reports, a reason to drop it, or a malformed item to quarantine."""
        if len(data) > 4 * MAX_ITEM_BYTES:
            return "too_large"
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            raw = data.encode("utf-8", "backslashreplace")[:MAX_ITEM_BYTES]
            return RawItem(raw, "an event that is not JSON")
        if not isinstance(event, dict):
            return "no_event"
        return self._no_fact(event) or self._edit(event)

    def _no_fact(self, event: Mapping[str, Any]) -> Reason:
        """Return why an event is not about a fact, or an empty string where it may be."""
        comment = str(event.get("comment", ""))[:1_000]
        match, named = _NO_FACT.search(comment), _PROPERTY.search(comment)
        part = (match["part"] or match["text"] or "sitelink") if match else ""
        reasons = {
            "other_wiki": event.get("wiki") != self._config.wiki,
            "no_edit": event.get("namespace") != 0 or event.get("type") != "edit",
            "bot": bool(event.get("bot")) and not self._config.bots,
            part: bool(part),
            "other_property": named is not None and named[1] not in self._relations,
        }
        return next((reason for reason, holds in reasons.items() if holds), "")

    def _edit(self, event: Mapping[str, Any]) -> Edit | Reason:
        revision, title, meta = event.get("revision"), event.get("title"), event.get("meta")
        named = _PROPERTY.search(str(event.get("comment", ""))[:1_000])
        if not isinstance(revision, dict) or not isinstance(meta, dict) or not _ITEM.fullmatch(str(title)):
            return "no_event"
        old, new, at = revision.get("old"), revision.get("new"), meta.get("dt")
        if not _is_id(old) or not _is_id(new) or not isinstance(at, str) or len(at) > 40:
            return "no_event"
        return Edit(str(title), old, new, at, named[1] if named else "")

    def _resolve(self, events: list[Event]) -> tuple[list[RawItem], Counter[str]]:
        """Return the items of events in their order, and counts of dropped ones by reason."""
        items: list[RawItem] = []
        dropped: Counter[str] = Counter()
        edits = [event.content for event in events if isinstance(event.content, Edit)]
        for event in events:
            if isinstance(event.content, str):
                dropped[event.content] += 1
            elif isinstance(event.content, RawItem):
                items.append(event.content)
        for start in range(0, len(edits), _AT_ONCE):
            self._resolve_some(edits[start : start + _AT_ONCE], items, dropped)
        return items, dropped

    def _resolve_some(self, edits: list[Edit], items: list[RawItem], dropped: Counter[str]) -> None:
        entities = self._revisions({number for edit in edits for number in (edit.old, edit.new)})
        pairs = [(edit, entities.get(edit.old), entities.get(edit.new)) for edit in edits]
        whole = [(edit, old, new) for edit, old, new in pairs if old is not None and new is not None]
        dropped["revision_gone"] += len(pairs) - len(whole)
        self._learn_labels(
            {one for edit, old, new in whole for one in entities_in(old, new, self._asked(edit))}
        )
        for edit, old, new in whole:
            subject = _own_label(new, self._config.language)
            if not subject:
                dropped["no_label"] += 1
                continue
            difference = compare(old, new, self._asked(edit), self._labels.get, self._config.language)
            dropped.update(difference.dropped)
            for change in difference.changes:
                raw = self._correction(edit, subject, change.relation, change.object)
                items.append(RawItem(raw, f"{edit.item} revision {edit.new}"))
        dropped += Counter()  # drops the zeros

    def _asked(self, edit: Edit) -> list[Relation]:
        return [self._relations[edit.property]] if edit.property else list(self._relations.values())

    def _correction(self, edit: Edit, subject: str, relation: Relation, value: str | None) -> bytes:
        correction = {
            "subject": subject,
            "relation": relation.name,
            "object": value,
            "observed_at": edit.at,
            "source": f"https://www.wikidata.org/w/index.php?title={edit.item}&oldid={edit.new}",
        }
        return json.dumps(correction).encode()

    def _revisions(self, numbers: set[int]) -> dict[int, Entity]:
        """Return the entities at revisions, except those that were deleted or hidden."""
        entities: dict[int, Entity] = {}
        for some in _chunks(sorted(numbers)):
            query = {"action": "query", "prop": "revisions", "revids": "|".join(map(str, some))}
            document = self._ask({**query, "rvprop": "ids|content", "rvslots": "main"})
            pages = (document.get("query") or {}).get("pages") or []
            for page in pages if isinstance(pages, list) else []:
                for revision in page.get("revisions") or []:
                    entity = _entity(revision)
                    if entity is not None:
                        entities[revision["revid"]] = entity
        return entities

    def _learn_labels(self, ids: set[str]) -> None:
        missing = sorted(ids - self._labels.keys())
        for some in _chunks(missing):
            query = {"action": "wbgetentities", "ids": "|".join(some), "props": "labels"}
            document = self._ask({**query, "languages": self._config.language, "languagefallback": "1"})
            entities = document.get("entities")
            for one in some:
                entity = entities.get(one) if isinstance(entities, dict) else None
                self._labels[one] = _own_label(entity or {}, self._config.language)
        while len(self._labels) > _LABELS:
            self._labels.pop(next(iter(self._labels)))

    def _ask(self, query: Mapping[str, str]) -> dict[str, Any]:
        url = f"{self._config.api_url}?{urlencode({**query, 'format': 'json', 'formatversion': '2'})}"
        try:
            document = json.loads(self._web.get(url, {"accept": "application/json"}).body)
        except (ValueError, RecursionError) as error:
            raise FeedError("the answer of the entity API is not JSON") from error
        if not isinstance(document, dict) or "error" in document:
            raise FeedError("the entity API answers with an error")
        return document


def _entity(revision: Any) -> Entity | None:
    """Return the entity in a revision of the API's answer, or None."""
    try:
        entity = json.loads(revision["slots"]["main"]["content"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return entity if isinstance(entity, dict) else None


def _own_label(entity: Entity, language: str) -> str | None:
    labels = entity.get("labels")
    one = labels.get(language) if isinstance(labels, Mapping) else None
    value = one.get("value") if isinstance(one, Mapping) else None
    return value if isinstance(value, str) and value else None


def _is_id(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**53


def _chunks(values: list[Any]) -> Iterable[list[Any]]:
    return (values[start : start + _IDS] for start in range(0, len(values), _IDS))
