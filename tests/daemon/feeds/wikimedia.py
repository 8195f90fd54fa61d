"""A world of items whose statements change, and a server that tells of it as Wikimedia does.

The world keeps its own books while it is made: what was said, by which revision, and which value each fact
has in the end. They are not derived from anything that Errata computes.
"""

import json
import random
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.daemon.feeds.servers import Answers

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
SINGLE = {
    "P36": "capital",
    "P6": "head of government",
    "P169": "chief executive officer",
    "P19": "place of birth",
}


@dataclass
class World:
    """Items, their revisions, the events that tell of them, and what should come of it."""

    seed: int
    events: list[str] = field(default_factory=list)  # data of each event
    revisions: dict[int, dict[str, Any]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    said: dict[tuple[str, str, int], str | None] = field(default_factory=dict)  # subject, relation, revision
    final: dict[tuple[str, str], str | None] = field(default_factory=dict)
    garbage: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.number = 0
        self.items: dict[str, dict[str, list[dict[str, Any]]]] = {}
        self.last: dict[str, int] = {}

    def make(self, count: int, items: int) -> None:
        """``count`` events about ``items`` items, with everything that a real stream has besides facts."""
        for place in range(items):
            self.names[f"Q{place + 1}"] = f"Land {place + 1}"
            self._revision(f"Q{place + 1}", {})
        for value in range(1, 200):
            self.names[f"Q{100_000 + value}"] = f"Person {value}"
        kinds = ("set", "set", "set", "remove", "qualifier", "deprecated", "sitelink", "label", "reference",
                 "other wiki", "other property", "garbage", "new page", "foreign json")  # fmt: skip
        while len(self.events) < count:
            getattr(self, "_" + self.dice.choice(kinds).replace(" ", "_"))()

    # -- what happens ---------------------------------------------------------------------------------

    def _set(self) -> None:
        item, property_ = self._pick()
        value = f"Q{100_000 + self.dice.randrange(1, 200)}"
        old = self._truth(item, property_)
        claims = {**self.items[item], property_: [_statement(value)]}
        number = self._edit(
            item, claims, f"/* wbsetclaim-update:2||1 */ [[Property:{property_}]]: [[{value}]]"
        )
        if old != value:
            self._note(item, property_, number, self.names[value])

    def _remove(self) -> None:
        item, property_ = self._pick()
        old = self._truth(item, property_)
        claims = {key: value for key, value in self.items[item].items() if key != property_}
        number = self._edit(item, claims, f"/* wbremoveclaims-remove:1| */ [[Property:{property_}]]")
        if old is not None:
            self._note(item, property_, number, None)

    def _deprecated(self) -> None:
        item, property_ = self._pick()
        extra = _statement("Q100001", "deprecated")
        claims = {**self.items[item], property_: [*self.items[item].get(property_, []), extra]}
        self._edit(item, claims, f"/* wbsetclaim-create:2||1 */ [[Property:{property_}]]: [[Q100001]]")

    def _qualifier(self) -> None:
        item, property_ = self._pick()
        self._edit(item, self.items[item], f"/* wbsetqualifier-add:1| */ [[Property:P1545]]: 3 {property_}")

    def _reference(self) -> None:
        item, _ = self._pick()
        self._edit(item, self.items[item], "/* wbsetreference-add:2| */ [[Property:P36]]: [[Q1]]")

    def _sitelink(self) -> None:
        item, _ = self._pick()
        self._edit(item, self.items[item], "/* clientsitelink-update:0|dewiki|dewiki:A|dewiki:B */")

    def _label(self) -> None:
        item, _ = self._pick()
        self._edit(item, self.items[item], "/* wbsetlabel-set:1|fr */ Pays")

    def _other_property(self) -> None:
        item, _ = self._pick()
        self._edit(item, self.items[item], "/* wbsetclaim-create:2||1 */ [[Property:P18]]: picture.jpg")

    def _other_wiki(self) -> None:
        self.events.append(json.dumps({**self._event("Q1", 1, 2, "fixed typo"), "wiki": "enwiki"}))

    def _new_page(self) -> None:
        self.events.append(json.dumps({**self._event("Q1", 1, 2, ""), "type": "new"}))

    def _foreign_json(self) -> None:
        """Valid JSON, even a valid correction, that is no event: never admitted."""
        lie = {"subject": "Land 1", "prompt": "The capital of Land 1 is", "object": "Lies"}
        self.events.append(json.dumps(self.dice.choice([lie, [], 5, None, {"wiki": "wikidatawiki"}])))

    def _garbage(self) -> None:
        self.garbage += 1
        self.events.append(
            f'{{"broken": {self.garbage}, ' + self.dice.choice(["\\u", "[[[[", "\x00\x1b[31m", "'"])
        )

    # -- books ----------------------------------------------------------------------------------------

    def _pick(self) -> tuple[str, str]:
        return self.dice.choice(list(self.items)), self.dice.choice(list(SINGLE))

    def _truth(self, item: str, property_: str) -> str | None:
        """The value of the one statement that is not deprecated."""
        for statement in self.items[item].get(property_, []):
            if statement["rank"] == "normal":
                return str(statement["mainsnak"]["datavalue"]["value"]["id"])
        return None

    def _note(self, item: str, property_: str, number: int, value: str | None) -> None:
        self.said[self.names[item], SINGLE[property_], number] = value
        self.final[self.names[item], SINGLE[property_]] = value

    def _revision(self, item: str, claims: dict[str, list[dict[str, Any]]]) -> int:
        self.number += 1
        label = {"en": {"language": "en", "value": self.names[item]}}
        self.items[item] = claims
        self.revisions[self.number] = {"type": "item", "id": item, "labels": label, "claims": claims}
        self.last[item] = self.number
        return self.number

    def _edit(self, item: str, claims: dict[str, list[dict[str, Any]]], comment: str) -> int:
        old = self.last[item]
        new = self._revision(item, claims)
        self.events.append(json.dumps(self._event(item, old, new, comment)))
        return new

    def _event(self, item: str, old: int, new: int, comment: str) -> dict[str, Any]:
        at = (BEGIN + timedelta(seconds=len(self.events))).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "$schema": "/mediawiki/recentchange/1.0.0",
            "meta": {"uri": f"https://www.wikidata.org/wiki/{item}", "dt": at, "domain": "www.wikidata.org",
                     "stream": "mediawiki.recentchange", "id": f"{len(self.events):08x}"},
            "type": "edit", "namespace": 0, "title": item, "comment": comment, "timestamp": 0,
            "user": "Somebody", "bot": False, "minor": False, "patrolled": True,
            "revision": {"old": old, "new": new}, "wiki": "wikidatawiki", "server_name": "www.wikidata.org",
        }  # fmt: skip


class Wikimedia:
    """Serves a world: the stream with cuts, repetitions and swapped neighbours, and the entity API."""

    def __init__(self, web: Answers, world: World, *, cut_every: int = 400) -> None:
        self._world, self._cut_every = world, cut_every
        self._dice, self._lock = random.Random(world.seed + 1), threading.Lock()
        self.order = list(range(len(world.events)))
        for at in range(0, len(self.order) - 1, 7):  # neighbours come in the wrong order
            self.order[at], self.order[at + 1] = self.order[at + 1], self.order[at]
        self.connections = 0
        web.at["/stream"], web.at["/api"] = self._stream, self._api

    def _stream(self, handler: BaseHTTPRequestHandler) -> None:
        with self._lock:
            self.connections += 1
            cut = self._dice.randrange(1, 2 * self._cut_every)
        after = handler.headers.get("last-event-id")
        begin = json.loads(after)[0]["offset"] + 1 if after else 0
        begin = max(0, begin - self._dice.randrange(3))  # some come twice
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream; charset=utf-8")
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        try:
            _chunk(handler, b":ok\n\n")
            for sent, at in enumerate(range(begin, len(self.order))):
                text = _event_text(at, self._world.events[self.order[at]])
                if sent == cut:  # in the middle of an event
                    _chunk(handler, text[: len(text) // 2])
                    handler.close_connection = True
                    return
                _chunk(handler, text * (2 if self._dice.random() < 0.02 else 1))
            while True:  # nothing more happens in this world
                _chunk(handler, b":still here\n\n")
                time.sleep(0.5)
        except OSError:
            pass

    def _api(self, handler: BaseHTTPRequestHandler) -> None:
        query = {key: values[0] for key, values in parse_qs(urlsplit(handler.path).query).items()}
        answer = self._labels(query) if query["action"] == "wbgetentities" else self._content(query)
        body = json.dumps(answer).encode()
        handler.send_response(200)
        handler.send_header("content-type", "application/json; charset=utf-8")
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _labels(self, query: dict[str, str]) -> dict[str, Any]:
        names = self._world.names
        labels = {one: {"en": {"language": "en", "value": names[one]}} for one in query["ids"].split("|")}
        return {
            "entities": {one: {"id": one, "labels": label} for one, label in labels.items()},
            "success": 1,
        }

    def _content(self, query: dict[str, str]) -> dict[str, Any]:
        pages: dict[str, dict[str, Any]] = {}
        for number in map(int, query["revids"].split("|")):
            entity = self._world.revisions[number]
            page = pages.setdefault(entity["id"], {"title": entity["id"], "revisions": []})
            main = {"contentmodel": "wikibase-item", "content": json.dumps(entity)}
            page["revisions"].append({"revid": number, "parentid": 0, "slots": {"main": main}})
        return {"batchcomplete": True, "query": {"pages": list(pages.values())}}


def _statement(value: str, rank: str = "normal") -> dict[str, Any]:
    content = {"entity-type": "item", "numeric-id": int(value[1:]), "id": value}
    snak = {"snaktype": "value", "datavalue": {"value": content, "type": "wikibase-entityid"}}
    return {"mainsnak": snak, "type": "statement", "rank": rank}


def _event_text(at: int, data: str) -> bytes:
    place = [{"topic": "eqiad.mediawiki.recentchange", "partition": 0, "offset": at},
             {"topic": "codfw.mediawiki.recentchange", "partition": 0, "offset": -1}]  # fmt: skip
    return f"event: message\nid: {json.dumps(place)}\ndata: {data}\n\n".encode()


def _chunk(handler: BaseHTTPRequestHandler, piece: bytes) -> None:
    handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
    handler.wfile.flush()
