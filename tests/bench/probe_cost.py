"""Measure the time of the fast probes beside that of the edit, in a real session.

    python -m tests.bench.probe_cost MODEL_FOLDER [--batch 20] [--batches 2] [--data counterfact.jsonl]

Every batch is committed, so later ones have older facts to sample. The first batch also measures the base
model, whose answers the probes keep. The seconds are the stages that the ledger records with each revision.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import tomli_w
import torch

from daemon.admission.submission import submit
from daemon.core.config.settings import load_config
from daemon.core.ledger.chain import head
from daemon.core.log import configure_logging
from tests.house import CORPUS
from tests.ledgers import make_batch
from workers.bench.facts import BenchFact, load_facts
from workers.queue.assemble import SessionHolder

_STAGES = ("load", "forget", "write", "verify", "review", "save", "probe")


def main() -> None:
    """Print one row for each batch, with the share of the probes relative to the edit in the last column."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--batch", type=int, default=20, help="facts in a batch")
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--data", type=Path, help="the file of CounterFact")
    given = parser.parse_args()
    torch.set_num_threads(1)
    configure_logging("ERROR")
    facts = load_facts("counterfact", given.batch * given.batches, None, given.data)
    sys.stdout.write(f"{'facts':>5} " + "".join(f"{stage:>9}" for stage in _STAGES) + f"{'share':>9}\n")
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "errata.toml"
        model = {"path": str(given.model.resolve()), "device": "cpu", "threads": 1, "corpus": str(CORPUS)}
        file.write_text(tomli_w.dumps({"model": model, "store": {"reserve_bytes": 0}}))
        session = SessionHolder(load_config(file)).session()
        for start in range(0, len(facts), given.batch):
            for fact in facts[start : start + given.batch]:
                submit(session.ledger, _statement(fact), "bench")
            batch = make_batch(session.ledger)
            if batch is not None:
                session.run(batch)
            with session.ledger.read() as connection:
                row = head(connection, session.model)
            sys.stdout.write(_line(row["active_facts"], row["stages"]))
            sys.stdout.flush()


def _statement(fact: BenchFact) -> dict[str, object]:
    request = fact.request
    return {
        "subject": request.subject,
        "prompt": request.prompt,
        "object": request.target,
        "paraphrases": [fact.paraphrase],
        "neighborhood": [fact.neighbor],
        "source": "bench",
    }


def _line(facts: int, stages: dict[str, float]) -> str:
    rest = sum(seconds for stage, seconds in stages.items() if stage != "probe")
    cells = "".join(f"{stages.get(stage, 0.0):9.2f}" for stage in _STAGES)
    return f"{facts:5d} {cells}{stages['probe'] / rest:9.1%}\n"


if __name__ == "__main__":
    main()
