"""Looking after older facts: later edits disturb them; a pair of the last layer, written anew, mends them."""

from collections.abc import Sequence

from workers.editing.editor import Associations, Editor
from workers.revisions.facts import Fact
from workers.revisions.pairs import load_pairs
from workers.revisions.store import Store


def choose(facts: Sequence[Fact], count: int, turn: int) -> list[Fact]:
    """The part of all active facts that this turn asks: ``count`` of them, so that in time all are asked."""
    if not facts or not count:
        return []
    start = turn * count % len(facts)
    return [*facts[start:], *facts[:start]][:count]


def mend_slipped(store: Store, editor: Editor, facts: Sequence[Fact]) -> list[tuple[Fact, Associations]]:
    """Ask facts that hold stored pairs; new pairs, already in the weights, for those that needed mending.

    One forward pass asks: does every token of the object come out on top after the prompt?

    Raises:
        CorruptBlobError, StoreError: a pair cannot be read. EditError: the mended weights are refused.
    """
    _, holds = editor.model.target_scores([f.prompt for f in facts], [f.object or "" for f in facts])
    slipped = [fact for fact, held in zip(facts, holds.tolist(), strict=True) if not held]
    if not slipped:
        return []
    pairs = [fact.replaces for fact in slipped if fact.replaces is not None]
    before = load_pairs(store, pairs, editor.layers)
    after = editor.mend([fact.request() for fact in slipped], before)
    last = editor.layers[-1]
    same = (before.values[last] == after.values[last]).all(1).tolist()
    return [(fact, after.select([row])) for row, fact in enumerate(slipped) if not same[row]]
