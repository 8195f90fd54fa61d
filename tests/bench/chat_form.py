"""Measure how many facts that were edited by their plain prompts are answered in chat form.

    python -m tests.bench.chat_form ERRATA_TOML FEED_JSONL [FACTS] [BATCH]

Writes the first facts of a feed file with the default recipe, without and with its setting ``chat``.
Asks each fact by its plain prompt and as a user's message. An answer counts when it contains the object.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from daemon.core.config.settings import load_config
from workers.bench.baselines.registry import resolve
from workers.editing.editor import Editor
from workers.editing.model import EditableModel
from workers.editing.prompts import EditRequest
from workers.models.open import open_model
from workers.queue.assemble import statistics_for
from workers.serving.generation import Sampling, encode_chat, stream

_TOKENS = 32


def main(file: str, feed: str, count: int, batch: int) -> None:
    """Print one row for each setting."""
    config = load_config(Path(file))
    model = open_model(config)
    facts = _facts(Path(feed), count)
    statistics = statistics_for(config, model, resolve(config.edit.recipe, {}, model.n_layers))
    print("recipe               plain    chat", flush=True)
    base = _rates(model, facts)
    print(f"{'before any edit':<20} {base[0]:<8.3f} {base[1]:.3f}", flush=True)
    for chat in (False, True):
        editor = Editor(model, statistics, resolve(config.edit.recipe, {"chat": chat}, model.n_layers))
        clean = editor.snapshot()
        for start in range(0, len(facts), batch):
            editor.write(facts[start : start + batch])
        plain, asked = _rates(model, facts)
        print(f"{f'chat = {chat}':<20} {plain:<8.3f} {asked:.3f}", flush=True)
        editor.rollback_to(clean)


def _rates(model: EditableModel, facts: Sequence[EditRequest]) -> tuple[float, float]:
    """Return the shares of facts answered by their plain prompt and as a user's message."""
    plain = model.greedy([fact.prompt for fact in facts], _TOKENS)
    sampling = Sampling(_TOKENS, temperature=0)
    chat = []
    for fact in facts:
        ids = encode_chat(model, [{"role": "user", "content": fact.prompt}])
        chat.append("".join(piece.text for piece in stream(model, ids, sampling)))
    shares = [sum(f.target in text for f, text in zip(facts, all_, strict=True)) for all_ in (plain, chat)]
    return shares[0] / len(facts), shares[1] / len(facts)


def _facts(file: Path, count: int) -> list[EditRequest]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [EditRequest(str(i), r["subject"], r["prompt"], r["object"]) for i, r in enumerate(rows[:count])]


if __name__ == "__main__":
    numbers = [int(text) for text in sys.argv[3:]]
    main(sys.argv[1], sys.argv[2], *[*numbers, *(32, 16)[len(numbers) :]])
