"""What a guard refuses, whom it names, and in which parts the others are tried again."""

import pytest

from daemon.core.errors import EditError
from workers.editing.guards import require_anchored, retry_without


def test_every_value_beyond_its_limit_is_named_and_the_worst_is_told() -> None:
    with pytest.raises(EditError, match=r"norm 9\.0, at most 3\.0") as refused:
        require_anchored(["a", "b", "c"], [4.0, 1.0, 9.0], [3.0, 3.0, 3.0])
    assert refused.value.reason == "norm"
    assert set(refused.value.culprits) == {"a", "c"}


def test_a_value_that_is_not_a_number_is_beyond_every_limit() -> None:
    with pytest.raises(EditError) as refused:
        require_anchored(["a", "b"], [1.0, float("nan")], [3.0, 3.0])
    assert set(refused.value.culprits) == {"b"}


@pytest.mark.parametrize(
    ("ids", "guilty", "refused", "parts"),
    [
        ("abcd", "b", [1], [[0, 2, 3]]),  # the others stay together
        ("abcd", "abcd", [0, 1, 2, 3], []),
        ("abcd", "", [], [[0, 1], [2, 3]]),  # nobody is named: halves find it
        ("abc", "", [], [[0], [1, 2]]),
        ("a", "", [0], []),  # who stands alone is the one
        ("ab", "z", [], [[0], [1]]),  # a name from another batch
    ],
)
def test_a_refused_batch_is_tried_again_without_the_guilty(
    ids: str, guilty: str, refused: list[int], parts: list[list[int]]
) -> None:
    error = EditError("too far", reason="norm", culprits=list(guilty))
    assert retry_without(list(ids), error) == (refused, parts)
