"""Find facts that the model answers correctly already, which are recorded and probed but not written."""

from collections.abc import Sequence

from workers.editing.editor import Editor
from workers.revisions.facts import Fact

NOTE = "the model answers so already; nothing was written"


def split_known(editor: Editor, facts: Sequence[Fact]) -> tuple[list[Fact], list[Fact]]:
    """Split facts into those that greedy decoding answers now and those to write.

    A fact that replaces an older pair is always written.
    """
    fresh = [fact for fact in facts if fact.replaces is None]
    readings = editor.verify([fact.request() for fact in fresh])
    known = {fact.correction_id for fact, reading in zip(fresh, readings, strict=True) if reading.ok}
    return (
        [fact for fact in facts if fact.correction_id in known],
        [fact for fact in facts if fact.correction_id not in known],
    )
