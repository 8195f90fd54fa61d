"""What a probe found item by item, small enough for the ledger, so that revisions meet on the same items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

_DIGITS = 5  # of a nat: far below what one item's likelihood is worth


class Scale(StrEnum):
    """What the values are: 1 and 0 for right and wrong, or a loss in nats, where less is better."""

    HITS = "hits"
    NATS = "nats"


@dataclass(frozen=True)
class Outcomes:
    """One value an item. ``suite`` names a list of items; without ``ids`` their order identifies them."""

    scale: Scale
    suite: str
    values: tuple[float, ...]
    ids: tuple[str, ...] | None = None

    @classmethod
    def of_hits(cls, suite: str, hits: Sequence[bool], ids: Sequence[str] | None = None) -> Self:
        """Right or wrong for each item."""
        return cls(Scale.HITS, suite, tuple(map(float, hits)), None if ids is None else tuple(ids))

    def to_json(self) -> dict[str, Any]:
        """As the ledger keeps it: hits as one string of digits."""
        said: dict[str, Any] = {"suite": self.suite}
        if self.ids is not None:
            said["ids"] = list(self.ids)
        if self.scale is Scale.HITS:
            return said | {"hits": "".join("1" if value else "0" for value in self.values)}
        return said | {"nats": [round(value, _DIGITS) for value in self.values]}

    @classmethod
    def from_json(cls, said: Mapping[str, Any] | None) -> Self | None:
        """What ``to_json`` wrote; None for nothing."""
        if not said:
            return None
        ids = tuple(said["ids"]) if "ids" in said else None
        if "hits" in said:
            return cls(Scale.HITS, said["suite"], tuple(float(digit == "1") for digit in said["hits"]), ids)
        return cls(Scale.NATS, said["suite"], tuple(said["nats"]), ids)

    def losses(self, before: "Outcomes") -> list[float]:
        """For each item of both: how much worse it is now than it was ``before``."""
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
