"""How often the judge cries wolf, and how soon it notices: through a real ledger, as a table.

    python -m tests.bench.judgement [--seeds 5]

A tiny random model answers a suite of 500 items of its own making. A no-op revision is the same model with
its weights shaken by a little noise, as an edit of something else does: undecided items tip either way.
Planted damage makes some of the right answers wrong from one revision on, for good.
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from daemon.core.config.settings import Config
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import incidents
from daemon.core.log import configure_logging
from tests.ledgers import found
from tests.numerics.models import random_model
from tests.watching import commit_and_judge, suite_row

ITEMS, NO_OPS, PLANTED_AT, LOOKS = 500, 200, 12, 12
_SHAKE = 3e-2  # of a weight's own spread: tips some two items in a hundred from one revision to the next

_EDITED = ("layers.0.mlp.down_proj.weight", "layers.1.mlp.down_proj.weight")


@dataclass(frozen=True)
class Row:
    """One line of the table; ``delays`` in revisions after the damage, None where it was never noticed."""

    drop: float
    alarms: int
    revisions: int
    delays: list[int | None]


class Quiz:
    """A tiny model and 500 items with two choices each; half of the items are undecided on purpose."""

    def __init__(self, seed: int) -> None:
        self._model = random_model(seed=seed).lm.float()
        self._clean = {name: value.clone() for name, value in self._model.state_dict().items()}
        self._noise = torch.Generator().manual_seed(seed)
        chance = torch.Generator().manual_seed(seed + 1)
        vocabulary = self._model.config.vocab_size
        self._prompts = torch.randint(3, vocabulary, (ITEMS, 6), generator=chance)
        self._choices = torch.randint(3, vocabulary, (ITEMS, 2), generator=chance)
        better = self._answers().float().argmax(1)
        key = torch.where(torch.rand(ITEMS, generator=chance) < 0.8, better, 1 - better)
        self._key = key  # the base model is right in four of five, as a good one would be

    def revision(self) -> list[bool]:
        """The outcomes of the model with its weights shaken anew."""
        self._model.load_state_dict(
            {name: self._shaken(name, value) for name, value in self._clean.items()}, strict=True
        )
        hits: list[bool] = (self._answers().argmax(1) == self._key).tolist()
        return hits

    def _shaken(self, name: str, value: torch.Tensor) -> torch.Tensor:
        if not name.endswith(_EDITED):
            return value
        return value + _SHAKE * value.std() * torch.randn(value.shape, generator=self._noise)

    @torch.no_grad()
    def _answers(self) -> torch.Tensor:
        logits = self._model(input_ids=self._prompts).logits[:, -1]
        return logits.gather(1, self._choices)


def revisions(quiz: Quiz, drop: float, seed: int) -> Iterator[list[bool]]:
    """No-op revisions; from number ``PLANTED_AT`` on a share ``drop`` of the items is lost as well."""
    chance, lost = random.Random(seed), set()
    number = 0
    while True:
        number += 1
        hits = quiz.revision()
        if drop and number == PLANTED_AT:
            lost = set(chance.sample([i for i, hit in enumerate(hits) if hit], round(drop * ITEMS)))
        yield [hit and i not in lost for i, hit in enumerate(hits)]


def alarms(quiz: Quiz, count: int, seed: int) -> int:
    """Incidents in so many no-op revisions."""
    with opened() as (ledger, config):
        for hits, _ in zip(revisions(quiz, 0.0, seed), range(count), strict=False):
            commit_and_judge(ledger, config, suite_row(hits))
        return count_incidents(ledger)


def delay(quiz: Quiz, drop: float, seed: int) -> int | None:
    """Revisions from the damage to the first incident, 1: the damaged one itself; None: not noticed."""
    with opened() as (ledger, config):
        for number, hits in enumerate(revisions(quiz, drop, seed), start=1):
            commit_and_judge(ledger, config, suite_row(hits))
            if count_incidents(ledger):
                return number - PLANTED_AT + 1
            if number == PLANTED_AT + LOOKS:
                return None
    return None


class opened:  # noqa: N801  # reads as a verb in «with»
    """A fresh ledger and a configuration whose judge only notes what it notices."""

    def __enter__(self) -> tuple[Ledger, Config]:
        self._folder = tempfile.TemporaryDirectory()
        self._ledger = Ledger.open(f"sqlite:///{Path(self._folder.name) / 'ledger.sqlite'}")
        found(self._ledger)
        return self._ledger, Config(watch={"auto_rollback": False})  # type: ignore[arg-type]

    def __exit__(self, *_: object) -> None:
        self._ledger.close()
        self._folder.cleanup()


def count_incidents(ledger: Ledger) -> int:
    """How many incidents there are."""
    with ledger.read() as connection:
        return len(connection.execute(incidents.select()).all())


def table(seeds: int, no_ops: int = NO_OPS) -> list[Row]:
    """The whole table: false alarms first, then each size of damage."""
    quizzes = [Quiz(seed) for seed in range(seeds)]
    rows = [Row(0.0, sum(alarms(quiz, no_ops, i) for i, quiz in enumerate(quizzes)), no_ops * seeds, [])]
    for_each = [
        (drop, [delay(quiz, drop, i) for i, quiz in enumerate(quizzes)]) for drop in (0.02, 0.05, 0.10)
    ]
    return rows + [Row(drop, 0, 0, delays) for drop, delays in for_each]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="models, and runs of each line")
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    configure_logging("CRITICAL")
    tipped = tips(Quiz(0))
    sys.stdout.write(f"{ITEMS} items; between two no-op revisions {tipped:.1f} of them change\n")
    for row in table(seeds):
        if row.drop == 0.0:
            share = row.alarms / row.revisions
            sys.stdout.write(f"no-op    {row.alarms} incidents in {row.revisions} revisions ({share:.2%})\n")
        else:
            found_in = ", ".join("never" if d is None else str(d) for d in row.delays)
            sys.stdout.write(f"{row.drop:6.0%}   noticed within revisions: {found_in}\n")


def tips(quiz: Quiz, count: int = 10) -> float:
    """Items that change from one no-op revision to the next, on average."""
    seen = [quiz.revision() for _ in range(count)]
    changed = [sum(a != b for a, b in zip(one, two, strict=True)) for one, two in pairwise(seen)]
    return sum(changed) / len(changed)


if __name__ == "__main__":
    main()
