"""Mend older facts that later edits have disturbed, by writing their pair of the last layer anew."""

from collections.abc import Sequence

from workers.editing.editor import Associations, Editor
from workers.revisions.facts import Fact
from workers.revisions.pairs import load_pairs
from workers.revisions.store import Store


def choose(facts: Sequence[Fact], count: int, turn: int) -> list[Fact]:
    """The ``count`` facts to review in this turn, so that successive turns go round all facts."""
    if not facts or not count:
        return []
    start = turn * count % len(facts)
    return [*facts[start:], *facts[:start]][:count]


def mend_slipped(store: Store, editor: Editor, facts: Sequence[Fact]) -> list[tuple[Fact, Associations]]:
    """Check facts that have stored pairs, and write those anew whose object is no longer the top answer.

    One forward pass checks whether every token of the object is the likeliest one after the prompt. Returns
    the facts that were mended with their new pairs, which are in the weights already.

    Raises:
        CorruptBlobError, StoreError: a pair cannot be read.
        EditError: the mended weights are refused.
    """
    _, correct = editor.model.target_scores([f.prompt for f in facts], [f.object or "" for f in facts])
    slipped = [fact for fact, good in zip(facts, correct.tolist(), strict=True) if not good]
    if not slipped:
        return []
    pairs = [fact.replaces for fact in slipped if fact.replaces is not None]
    before = load_pairs(store, pairs, editor.layers)
    after = editor.mend([fact.request() for fact in slipped], before)
    last = editor.layers[-1]
    unchanged = (before.values[last] == after.values[last]).all(1).tolist()
    return [(fact, after.select([row])) for row, fact in enumerate(slipped) if not unchanged[row]]
