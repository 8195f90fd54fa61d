"""A refused correction leaves its batch and the others are written."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from daemon.core.errors import EditError
from tests.crash.life import Life
from tests.crash.test_known import teach
from tests.ledgers import held, states
from tests.toy import ToyEditor, said
from workers.editing.editor import Associations
from workers.editing.prompts import EditRequest

UNFIT = ("Unfit", "Unfitter")


@pytest.mark.parametrize("named", [True, False], ids=["named", "not named"])
def test_what_is_refused_leaves_and_the_others_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    life, write, sizes = Life(tmp_path), ToyEditor.write_pairs, []
    life.found()

    def guarded(editor: ToyEditor, requests: Sequence[EditRequest]) -> Associations:
        sizes.append(len(requests))
        unfit = [request.id for request in requests if request.subject in UNFIT]
        if unfit:
            raise EditError("too far", reason="norm", culprits=unfit if named else ())
        return write(editor, requests)

    monkeypatch.setattr(ToyEditor, "write_pairs", guarded)
    teach(life, *(said(name, "City 1", 1) for name in ("Peru", *UNFIT, "Chad")))
    assert sizes == ([4, 2] if named else [4, 2, 1, 1, 2, 1, 1])
    assert held(life.ledger) == {"Peru": "City 1", "Chad": "City 1"}
    assert sorted(states(life.ledger).values()) == ["applied", "applied", "quarantined", "quarantined"]
    life.check_head()
