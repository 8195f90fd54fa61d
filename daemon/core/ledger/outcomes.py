"""Results of a probe item by item, so that two revisions can be compared on the same items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

_DIGITS = 5  # of a nat: far below what one item's likelihood is worth


class Scale(StrEnum):
    """The kind of the values: 1 for right and 0 for wrong, or a loss in nats."""

    HITS = "hits"
    NATS = "nats"


@dataclass(frozen=True)
class Outcomes:
    """One value for each item of a suite. Without ``ids`` the items are identified by their order."""

    scale: Scale
    suite: str
    values: tuple[float, ...]
    ids: tuple[str, ...] | None = None

    @classmethod
    def of_hits(cls, suite: str, hits: Sequence[bool], ids: Sequence[str] | None = None) -> Self:
        """Right or wrong for each item."""
        return cls(Scale.HITS, suite, tuple(map(float, hits)), None if ids is None else tuple(ids))

    def to_json(self) -> dict[str, Any]:
        """As the ledger stores it, with hits as one string of digits."""
        stored: dict[str, Any] = {"suite": self.suite}
        if self.ids is not None:
            stored["ids"] = list(self.ids)
        if self.scale is Scale.HITS:
            return stored | {"hits": "".join("1" if value else "0" for value in self.values)}
        return stored | {"nats": [round(value, _DIGITS) for value in self.values]}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any] | None) -> Self | None:
        """Read what ``to_json`` wrote, or None where there is nothing."""
        if not stored:
            return None
        ids = tuple(stored["ids"]) if "ids" in stored else None
        if "hits" in stored:
            hits = tuple(float(digit == "1") for digit in stored["hits"])
            return cls(Scale.HITS, stored["suite"], hits, ids)
        return cls(Scale.NATS, stored["suite"], tuple(stored["nats"]), ids)

    def losses(self, before: "Outcomes") -> list[float]:
        """How much worse each item that both have is now than ``before``."""
        sign = -1.0 if self.scale is Scale.HITS else 1.0
        return [sign * (now - then) for then, now in self._pairs(before)]

    def _pairs(self, before: "Outcomes") -> list[tuple[float, float]]:
        if (self.scale, self.suite) != (before.scale, before.suite):
            return []
        if self.ids is None or before.ids is None:
            same = self.ids is before.ids and len(self.values) == len(before.values)
            return list(zip(before.values, self.values, strict=True)) if same else []
        then = dict(zip(before.ids, before.values, strict=True))
        return [(then[key], now) for key, now in zip(self.ids, self.values, strict=True) if key in then]
