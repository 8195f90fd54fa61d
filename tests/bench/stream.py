"""A stream of corrections for the benches that break things, which knows what it has written."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.toy import ANSWERS, said

BEGIN = datetime(2020, 1, 1, tzinfo=UTC)
SUBJECTS = tuple(f"Land {number}" for number in range(60))  # the toy's layers hold somewhat more facts
UNTEACHABLE = "Unland"


@dataclass
class Written:
    """The lines that were written to the feed."""

    lines: list[str] = field(default_factory=list)  # of different corrections
    garbage: int = 0
    repeated: int = 0

    def accepted(self) -> int:
        """Return the number of corrections that the ledger must have."""
        return len(self.lines)

    def total(self) -> int:
        """Return the number of lines."""
        return len(self.lines) + self.garbage + self.repeated


class Stream:
    """A feed of JSON lines, mostly new statements about few facts.

    Some are old, repeated, retractions, garbage, or about ``hopeless``, which cannot be taught.
    """

    def __init__(
        self,
        file: Path,
        seed: int,
        subjects: Sequence[str] = SUBJECTS,
        answers: Sequence[str] = ANSWERS,
        hopeless: str | None = UNTEACHABLE,
    ) -> None:
        self.file, self.written = file, Written()
        self._chance = random.Random(seed)
        self._subjects, self._answers, self._hopeless = subjects, answers, hopeless
        file.touch()

    def write(self, count: int) -> None:
        """Append lines."""
        with self.file.open("a") as stream:
            for _ in range(count):
                stream.write(self._line() + "\n")

    def write_about_all(self) -> None:
        """Append one new statement about every subject."""
        with self.file.open("a") as stream:
            for subject in self._subjects:
                stream.write(self._statement(subject, self._chance.choice(self._answers)) + "\n")

    def _line(self) -> str:
        kind = self._chance.random()
        if kind < 0.02:
            self.written.garbage += 1
            return "no correction at all"
        if kind < 0.04 and self.written.lines:
            self.written.repeated += 1
            return self._chance.choice(self.written.lines[-500:])
        subject = self._chance.choice(self._subjects)
        if kind < 0.05 and self._hopeless is not None:
            subject = self._hopeless
        answer = None if kind > 0.97 else self._chance.choice(self._answers)
        return self._statement(subject, answer, self._chance.randrange(3_000) if kind > 0.90 else 0)

    def _statement(self, subject: str, answer: str | None, age: int = 0) -> str:
        """One new statement, which is old where ``age`` is not 0."""
        number = len(self.written.lines)
        moment = BEGIN + timedelta(seconds=number - age, microseconds=number)
        line = json.dumps(said(subject, answer, 1, effective_at=moment.isoformat(), source=f"line {number}"))
        self.written.lines.append(line)
        return line
