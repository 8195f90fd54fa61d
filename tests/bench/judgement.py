"""Measure false alarms of the judge and its delay in noticing damage, through a real ledger.

    python -m tests.bench.judgement [--seeds 5]

A tiny random model answers 500 random items. A no-op revision is the same model with a little noise on its
weights, as after an unrelated edit, which flips undecided items either way. Planted damage makes some right
answers wrong in all revisions from a given one on.
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
_SHAKE = 3e-2  # standard deviations of a weight, which flips about 2% of the items between two revisions
_EDITED = ("layers.0.mlp.down_proj.weight", "layers.1.mlp.down_proj.weight")


@dataclass(frozen=True)
class Row:
    """One row of the table, with delays in revisions, or None where the damage was not noticed."""

    drop: float
    alarms: int
    revisions: int
    delays: list[int | None]


class Quiz:
    """A tiny model and 500 items with two choices each."""

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
        self._key = key  # the base model is right on 80% of the items, as a good one would be

    def revision(self) -> list[bool]:
        """Return the hits of the model with new noise on its weights."""
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
    """Yield no-op revisions, which from number ``PLANTED_AT`` on lose a share ``drop`` of the items."""
    chance, lost = random.Random(seed), set()
    number = 0
    while True:
        number += 1
        hits = quiz.revision()
        if drop and number == PLANTED_AT:
            lost = set(chance.sample([i for i, hit in enumerate(hits) if hit], round(drop * ITEMS)))
        yield [hit and i not in lost for i, hit in enumerate(hits)]


def alarms(quiz: Quiz, count: int, seed: int) -> int:
    """Count the incidents in ``count`` no-op revisions."""
    with opened() as (ledger, config):
        for hits, _ in zip(revisions(quiz, 0.0, seed), range(count), strict=False):
            commit_and_judge(ledger, config, suite_row(hits))
        return count_incidents(ledger)


def delay(quiz: Quiz, drop: float, seed: int) -> int | None:
    """Return the revisions from the damage to the first incident, or None without an incident.

    It is 1 when the damaged revision itself has the incident.
    """
    with opened() as (ledger, config):
        for number, hits in enumerate(revisions(quiz, drop, seed), start=1):
            commit_and_judge(ledger, config, suite_row(hits))
            if count_incidents(ledger):
                return number - PLANTED_AT + 1
            if number == PLANTED_AT + LOOKS:
                return None
    return None


@contextmanager
def opened() -> Iterator[tuple[Ledger, Config]]:
    """Yield a new ledger and a configuration without automatic rollback."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.open(f"sqlite:///{Path(folder) / 'ledger.sqlite'}")
        found(ledger)
        yield ledger, Config(watch={"auto_rollback": False})  # type: ignore[arg-type]
        ledger.close()


def count_incidents(ledger: Ledger) -> int:
    """Count the incidents of a ledger."""
    with ledger.read() as connection:
        return len(connection.execute(incidents.select()).all())


def table(seeds: int, no_ops: int = NO_OPS) -> list[Row]:
    """Return the rows of the table, first false alarms and then each size of damage."""
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
    parser.add_argument(
        "--seeds", type=int, default=5, help="number of models, each with one run for each row"
    )
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    configure_logging("CRITICAL")
    changes = flips(Quiz(0))
    sys.stdout.write(f"{ITEMS} items, of which {changes:.1f} change between two no-op revisions\n")
    for row in table(seeds):
        if row.drop == 0.0:
            share = row.alarms / row.revisions
            sys.stdout.write(f"no-op    {row.alarms} incidents in {row.revisions} revisions ({share:.2%})\n")
        else:
            found_in = ", ".join("never" if d is None else str(d) for d in row.delays)
            sys.stdout.write(f"{row.drop:6.0%}   noticed within revisions: {found_in}\n")


def flips(quiz: Quiz, count: int = 10) -> float:
    """Return the mean number of items that change from one no-op revision to the next."""
    seen = [quiz.revision() for _ in range(count)]
    changed = [sum(a != b for a, b in zip(one, two, strict=True)) for one, two in pairwise(seen)]
    return sum(changed) / len(changed)


if __name__ == "__main__":
    main()
