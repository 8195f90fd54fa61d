"""Compare the answers of the low-rank export with those of the edited model.

    python -m tests.bench.lora_answers ERRATA_TOML [REVISION] [ENERGY ...]

Prints for each energy the rank and size of the adapter, and the share of active facts for which the base with
the adapter, loaded by PEFT, gives the same greedy text as the edited model.
"""

import sys
import tempfile
from pathlib import Path

from peft import PeftModel

from daemon.core.config.settings import load_config
from daemon.core.ledger.chain import head
from daemon.core.ledger.ledger import Ledger
from workers.models.open import open_model
from workers.publishing.lora import ADAPTER, export_adapter
from workers.publishing.revision_facts import read_revision
from workers.revisions.loading import load_tensors
from workers.revisions.store import Store

_TOKENS = 8
_ENERGIES = (0.9, 0.99, 0.999, 0.9999)


def main(file: str, revision: str | None, energies: list[float]) -> None:
    """Print one row for each energy."""
    config = load_config(Path(file))
    store, ledger, model = (
        Store(config.store_path),
        Ledger.open_existing(config.ledger_url),
        open_model(config),
    )
    with ledger.read() as connection:
        name = config.model.name
        number = int(revision) if revision else int(head(connection, name)["number"])
        base, wanted = read_revision(connection, name, 0), read_revision(connection, name, number)
    prompts = [fact["prompt"] for fact in wanted.facts]
    for tensor_name, tensor in load_tensors(store, wanted.tensors).items():
        model.lm.get_parameter(tensor_name).data.copy_(tensor)
    edited = model.greedy(prompts, _TOKENS)
    right = sum(a.strip().startswith(f["object"]) for a, f in zip(edited, wanted.facts, strict=True))
    print(f"revision {number}: {len(prompts)} active facts, the edited model answers {right}")
    print("energy   ranks        MiB     error   same answers   right answers")
    for energy in energies:
        model = open_model(config)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "adapter"
            rows = export_adapter(store, base, wanted, config.model_path, folder, energy)
            size = (folder / ADAPTER).stat().st_size / 2**20
            tuned = PeftModel.from_pretrained(model.lm, str(folder))
            model.lm = tuned.merge_and_unload()
        answers = model.greedy(prompts, _TOKENS)
        same = sum(a == b for a, b in zip(answers, edited, strict=True)) / max(len(prompts), 1)
        right = sum(a.strip().startswith(f["object"]) for a, f in zip(answers, wanted.facts, strict=True))
        ranks, error = "+".join(str(row.rank) for row in rows), max(row.error for row in rows)
        print(f"{energy:<8} {ranks:<12} {size:<7.2f} {error:<7.4f} {same:<14.4f} {right / len(prompts):.4f}")


if __name__ == "__main__":
    chosen = sys.argv[2] if len(sys.argv) > 2 else None
    main(sys.argv[1], chosen, [float(text) for text in sys.argv[3:]] or list(_ENERGIES))
