"""Facts that the model answers right without an edit: recorded, not written, and watched like the others."""

from collections.abc import Sequence

from sqlalchemy import Connection, select

from daemon.core.chain import active_tenures
from daemon.core.schema import corrections
from workers.editing.editor import Editor
from workers.plan import Fact, to_fact

NOTE = "the model answers so already; nothing was written"
_CHUNK = 500


def split_known(editor: Editor, facts: Sequence[Fact]) -> tuple[list[Fact], list[Fact]]:
    """Those that greedy decoding answers now, and the rest; what replaces an older pair is always written."""
    fresh = [fact for fact in facts if fact.replaces is None]
    verdicts = editor.verify([fact.request() for fact in fresh])
    known = {fact.correction_id for fact, verdict in zip(fresh, verdicts, strict=True) if verdict.ok}
    return (
        [fact for fact in facts if fact.correction_id in known],
        [fact for fact in facts if fact.correction_id not in known],
    )


def known_facts(connection: Connection, model: str, at: int) -> list[Fact]:
    """The facts that revision ``at`` holds without a pair of theirs in the weights."""
    ids = [row["correction_id"] for row in active_tenures(connection, model, at) if row["blob"] is None]
    found: list[Fact] = []
    for start in range(0, len(ids), _CHUNK):
        query = select(corrections).where(
            corrections.c.id.in_(ids[start : start + _CHUNK]), corrections.c.object.is_not(None)
        )
        found += [
            to_fact(row, None) for row in connection.execute(query.order_by(corrections.c.seq)).mappings()
        ]
    return found
