"""A feed of Wikidata's changed statements: a stream says which revisions, the entity API what changed."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeGuard
from urllib.parse import urlencode, urlsplit

from daemon.core.config.feeds import WikidataFeedConfig
from daemon.core.corrections import MAX_ITEM_BYTES
from daemon.core.errors import FeedError
from daemon.core.relations.table import Relation, find, relations
from daemon.feeds.base import Cursor, Pull, RawItem
from daemon.feeds.guard import Limits, Web
from daemon.feeds.sse import Event, EventStream
from daemon.feeds.statements import Entity, compare, entities_in

_AT_ONCE = 24  # edits resolved by one request: two revisions each, and the API takes 50
_IDS = 50
_LABELS = 20_000  # kept; the oldest go
_NO_FACT = re.compile(
    r"/\* (?:wb(?:set|remove)(?P<part>qualifier|reference)"
    r"|wb(?:set|add|remove)?(?P<text>label|description|alias)|(?:wbset|client)sitelink)"
)
_PROPERTY = re.compile(r"\[\[Property:(P[1-9]\d{0,9})\]\]")
_ITEM = re.compile(r"Q[1-9]\d{0,11}")
Reason = str


@dataclass(frozen=True)
class Edit:
    """One edit of an item that may have changed a statement."""

    item: str
    old: int
    new: int
    at: str
    property: str  # empty: the edit may have touched several


class WikidataFeed:
    """Changes of statements in the configured relations, in the order in which the stream has them.

    What is no fact is dropped and counted by its reason in the cursor, beside the id from which the stream
    goes on. The cursor stands in the ledger with what was admitted: nothing is lost or counted twice.
    """

    def __init__(self, config: WikidataFeedConfig) -> None:
        self.name, self.trust, self._config = config.name, config.trust, config
        limits = Limits.of(config, config.url, config.api_url)
        self._web = Web(limits, config.token_file, urlsplit(config.api_url).hostname or "")
        self._stream = EventStream(self._web, config.url, self._read)
        known = [find(name) for name in config.relations] if config.relations else relations().values()
        self._relations = {one.property: one for one in known if one is not None}
        self._labels: dict[str, str | None] = {}

    @classmethod
    def from_config(cls, config: WikidataFeedConfig) -> Self:
        """The feed that a ``[[feeds]]`` section describes."""
        return cls(config)

    def pull(self, cursor: Cursor, limit: int) -> Pull:
        """The facts of the next events; ``limit`` bounds how many events are looked at.

        Raises:
            FeedError: the stream or the entity API cannot be read now.
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

    # -- the stream -----------------------------------------------------------------------------------

    def _read(self, data: str) -> Edit | Reason | RawItem:
        """What an event is about: an edit to look at, a reason to drop it, or garbage for the quarantine."""
        if len(data) > 4 * MAX_ITEM_BYTES:
            return "too_large"
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            raw = data.encode("utf-8", "backslashreplace")[:MAX_ITEM_BYTES]
            return RawItem(raw, "an event that is no JSON")
        if not isinstance(event, dict):
            return "no_event"
        return self._no_fact(event) or self._edit(event)

    def _no_fact(self, event: Mapping[str, Any]) -> Reason:
        """Why an event is none about a fact, by what it says of itself; empty: it may be."""
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

    # -- the entity API -------------------------------------------------------------------------------

    def _resolve(self, events: list[Event]) -> tuple[list[RawItem], Counter[str]]:
        """Items and reasons for what was dropped, of events in their order."""
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
            found = compare(old, new, self._asked(edit), self._labels.get, self._config.language)
            dropped.update(found.dropped)
            for change in found.changes:
                said = self._correction(edit, subject, change.relation, change.object)
                items.append(RawItem(said, f"{edit.item} revision {edit.new}"))
        dropped += Counter()  # without zeros

    def _asked(self, edit: Edit) -> list[Relation]:
        return [self._relations[edit.property]] if edit.property else list(self._relations.values())

    def _correction(self, edit: Edit, subject: str, relation: Relation, value: str | None) -> bytes:
        said = {
            "subject": subject,
            "relation": relation.name,
            "object": value,
            "observed_at": edit.at,
            "source": f"https://www.wikidata.org/w/index.php?title={edit.item}&oldid={edit.new}",
        }
        return json.dumps(said).encode()

    def _revisions(self, numbers: set[int]) -> dict[int, Entity]:
        """The entities at revisions, by revision; those that were deleted or hidden are missing."""
        found: dict[int, Entity] = {}
        for some in _chunks(sorted(numbers)):
            query = {"action": "query", "prop": "revisions", "revids": "|".join(map(str, some))}
            document = self._ask({**query, "rvprop": "ids|content", "rvslots": "main"})
            pages = (document.get("query") or {}).get("pages") or []
            for page in pages if isinstance(pages, list) else []:
                for revision in page.get("revisions") or []:
                    entity = _entity(revision)
                    if entity is not None:
                        found[revision["revid"]] = entity
        return found

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
            raise FeedError("the entity API does not answer in JSON") from error
        if not isinstance(document, dict) or "error" in document:
            raise FeedError("the entity API answers with an error")
        return document


def _entity(revision: Any) -> Entity | None:
    """The entity in a revision of the API's answer."""
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
