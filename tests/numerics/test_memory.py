"""The memory against the ridge solution written out here, and against itself in any order."""

import pytest
import torch

from daemon.core.errors import EditError
from workers.bench.baselines.alphaedit import ProjectedMemory, null_space
from workers.bench.baselines.emmet import EqualityMemory
from workers.bench.baselines.memit import BatchMemory
from workers.editing.memory import Memory, on_grid

D_IN, D_OUT = 24, 10


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def prior() -> torch.Tensor:
    text = randn(D_IN, 200)
    return 5.0 * text @ text.T / 200 + 0.3 * torch.eye(D_IN, dtype=torch.float64)


def pairs(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return randn(n, D_IN), randn(n, D_OUT)


def ridge(base: torch.Tensor, A0: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """argmin Σ‖W k − v‖² + tr((W − W0) A0 (W − W0)ᵀ) from its normal equations."""
    A = A0 + keys.T @ keys
    return torch.linalg.solve(A, (base @ A0 + values.T @ keys).T).T


def assert_near(found: torch.Tensor, wanted: torch.Tensor, relative: float) -> None:
    assert float((found - wanted).norm()) <= relative * float(wanted.norm())


def test_write_is_the_ridge_solution() -> None:
    base, A0, (keys, values) = randn(D_OUT, D_IN), prior(), pairs(4)
    memory = Memory(base, A0)
    memory.write(keys, values)
    assert_near(memory.weight, ridge(base, A0, keys, values), 1e-12)


def test_a_known_answer() -> None:
    """Prior I, W0 = 0, one key e₁ and value 4: W minimises (w − 4)² + w², so w = 2."""
    memory = Memory(torch.zeros(1, 3), torch.eye(3))
    memory.write(torch.tensor([[1.0, 0, 0]]), torch.tensor([[4.0]]))
    torch.testing.assert_close(memory.weight, torch.tensor([[2.0, 0, 0]], dtype=torch.float64))


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (3, 40, 2), (6, 1, 30, 30)])
def test_many_writes_are_one(sizes: tuple[int, ...]) -> None:
    base, A0, (keys, values) = randn(D_OUT, D_IN), prior(), pairs(sum(sizes))
    memory = Memory(base, A0)
    for k, v in zip(keys.split(sizes), values.split(sizes), strict=True):
        memory.write(k, v)
    assert_near(memory.weight, ridge(base, A0, keys, values), 1e-9)
    rebuilt = Memory(base, A0)
    rebuilt.rebuild(keys, values)
    assert_near(rebuilt.weight, memory.weight, 1e-9)


def test_order_does_not_matter() -> None:
    base, A0, (keys, values) = randn(D_OUT, D_IN), prior(), pairs(9)
    one, other = Memory(base, A0), Memory(base, A0)
    shuffled = torch.randperm(9)
    for i in range(9):
        one.write(keys[i : i + 1], values[i : i + 1])
        other.write(keys[shuffled[i : i + 1]], values[shuffled[i : i + 1]])
    assert_near(one.weight, other.weight, 1e-12)


def test_forget_leaves_what_was_never_written() -> None:
    base, A0, (keys, values) = randn(D_OUT, D_IN), prior(), pairs(12)
    memory = Memory(base, A0)
    memory.write(keys[:7], values[:7])
    memory.write(keys[7:], values[7:])
    memory.forget(keys[2:9], values[2:9])
    kept = [0, 1, 9, 10, 11]
    assert_near(memory.weight, ridge(base, A0, keys[kept], values[kept]), 1e-11)


def test_forgetting_all_gives_the_base_exactly() -> None:
    base, A0, (keys, values) = randn(D_OUT, D_IN), prior(), pairs(6)
    memory = Memory(base, A0)
    memory.write(keys, values)
    for i in torch.randperm(6).tolist():
        memory.forget(keys[i : i + 1], values[i : i + 1])
    assert torch.equal(memory.weight, base)
    memory.write(keys, values)
    assert_near(memory.weight, ridge(base, A0, keys, values), 1e-12)


def test_a_revised_fact_costs_no_norm() -> None:
    """Forget before write: after ten revisions the layer is what the newest value alone makes it."""
    base, A0, (key, _) = randn(D_OUT, D_IN), prior(), pairs(1)
    memory, values = Memory(base, A0), randn(10, 1, D_OUT)
    for old, new in zip([None, *values[:-1]], values, strict=True):
        if old is not None:
            memory.forget(key, old)
        memory.write(key, new)
    assert_near(memory.weight, ridge(base, A0, key, values[-1]), 1e-11)


def test_thousands_of_turns_do_not_drift() -> None:
    base, A0 = randn(D_OUT, D_IN), prior()
    keys, values = pairs(20)
    memory = Memory(base, A0)
    memory.write(keys, values)
    for turn in range(1000):
        one = slice(turn % 20, turn % 20 + 1)
        memory.forget(keys[one], values[one])
        memory.write(keys[one], values[one])
    assert_near(memory.weight, ridge(base, A0, keys, values), 1e-9)


def test_strong_keys_cost_few_digits() -> None:
    """Keys that outweigh the prior a thousand times come and go, and the rest is solved to twelve digits."""
    base, A0, (keys, values) = randn(D_OUT, D_IN), prior(), pairs(4)
    memory = Memory(base, A0)
    memory.write(keys, values)
    for _ in range(30):
        strong, said = pairs(3)
        strong *= 30.0 / strong.norm(dim=1, keepdim=True)
        assert float(memory.strength(strong).min()) > 100.0
        memory.write(strong, said)
        memory.forget(strong, said)
    assert_near(memory.weight, ridge(base, A0, keys, values), 1e-12)


def test_the_grid_takes_the_rounding_of_the_way() -> None:
    """The same pairs in another order, after a thousand others came and went: the same bits."""
    base, A0, (keys, values) = randn(D_OUT, D_IN), prior(), pairs(20)
    one, other = Memory(base, A0), Memory(base, A0)
    one.write(keys, values)
    for row in torch.randperm(20).tolist():
        other.write(keys[row : row + 1], values[row : row + 1])
    for _ in range(200):
        passing = pairs(5)
        other.write(*passing)
        other.forget(*passing)
    assert not torch.equal(one.weight, other.weight)
    changes = [on_grid(memory.weight - base, base) for memory in (one, other)]
    assert torch.equal(*changes)
    assert_near(changes[0], one.weight - base, 1e-5)


def test_the_grid_is_a_power_of_two_below_the_weights() -> None:
    """W0 of root mean square 3 has steps of 2⁻¹⁶·2: 1.26 and 1.74 steps become 1 and 2."""
    step = 2.0**-15
    delta = torch.tensor([[1.26 * step, 1.74 * step, -1.26 * step, 0.0]], dtype=torch.float64)
    wanted = torch.tensor([[step, 2 * step, -step, 0.0]], dtype=torch.float64)
    assert torch.equal(on_grid(delta, torch.full((4, 4), 3.0)), wanted)
    assert torch.equal(on_grid(delta, torch.zeros(4, 4)).count_nonzero(), torch.tensor(3))


def test_a_key_that_could_not_be_forgotten_is_refused() -> None:
    """The strongest key that is let in can be taken out again, and one ten times stronger is refused."""
    base, (keys, values) = randn(D_OUT, D_IN), pairs(2)
    memory = Memory(base, torch.eye(D_IN))
    strong = keys[:1] / keys[:1].norm() * 1e5**0.5 * 0.99
    memory.write(strong, values[:1])
    memory.write(keys[1:], values[1:])
    memory.forget(strong, values[:1])
    wanted = ridge(base, torch.eye(D_IN, dtype=torch.float64), keys[1:], values[1:])
    assert_near(memory.weight, wanted, 1e-6)
    with pytest.raises(EditError) as refused:
        memory.write(4 * strong, values[:1])
    assert refused.value.reason == "norm"


def test_without_history_each_write_sees_the_prior_alone() -> None:
    """MEMIT: Δ = R Kᵀ (A0 + K Kᵀ)⁻¹ on top of whatever is there."""
    base, A0, (keys, values) = randn(D_OUT, D_IN), prior(), pairs(8)
    memory, weight = BatchMemory(base, A0), base
    for k, v in zip(keys.split(4), values.split(4), strict=True):
        memory.write(k, v)
        weight = weight + (v.T - weight @ k.T) @ k @ torch.linalg.inv(A0 + k.T @ k)
    assert_near(memory.weight, weight, 1e-12)
    with pytest.raises(EditError):
        memory.forget(keys[:4], values[:4])


def test_the_projector_is_alphaedit() -> None:
    """Δ = R Kᵀ P (Kp Kpᵀ P + K Kᵀ P + λ I)⁻¹ (arXiv 2410.02355, eq. 14), and nothing moves outside of P."""
    base, (keys, values) = randn(D_OUT, D_IN), pairs(8)
    null = torch.linalg.qr(randn(D_IN, 15)).Q
    P = null @ null.T
    eye = torch.eye(D_IN, dtype=torch.float64)
    memory, weight, before = ProjectedMemory(base, 2.0 * eye, P), base, torch.zeros(D_IN, D_IN).double()
    for k, v in zip(keys.split(4), values.split(4), strict=True):
        memory.write(k, v)
        right = torch.linalg.inv(before @ P + k.T @ k @ P + 2.0 * eye)
        weight = weight + (v.T - weight @ k.T) @ k @ P @ right
        before = before + k.T @ k
    assert_near(memory.weight, weight, 1e-11)
    assert float(((memory.weight - base) @ (eye - P)).norm()) < 1e-11
    goals = randn(2, D_OUT)
    assert_near(memory.strength(keys[:2]), (keys[:2] @ P).square().sum(1) / 2.0, 1e-12)
    memory.write(keys[:2], memory.values_for(keys[:2], goals, least=1e-12))
    assert_near(memory.weight @ keys[:2].T, goals.T, 1e-9)
    memory = ProjectedMemory(base, 2.0 * eye, P)
    memory.write(keys, values)
    assert_near(memory.weight, weight, 1e-11)
    memory.forget(keys[:4], values[:4])
    memory.forget(keys[4:], values[4:])
    assert torch.equal(memory.weight, base)


def test_the_null_space_is_that_of_small_eigenvalues() -> None:
    axes = torch.linalg.qr(randn(4, 4)).Q
    C = axes @ torch.diag(torch.tensor([0.0, 1e-3, 0.5, 2.0]).double()) @ axes.T
    assert_near(null_space(C, 1e-2), axes[:, :2] @ axes[:, :2].T, 1e-12)
    with pytest.raises(EditError, match="no eigenvalue"):
        null_space(C + torch.eye(4), 1e-2)


def test_with_equality_each_write_reaches_its_values_at_the_least_change() -> None:
    """EMMET: W k = v exactly, and of all such Δ the one that is least under C."""
    base, A0, (keys, values) = randn(D_OUT, D_IN), prior(), pairs(4)
    memory = EqualityMemory(base, A0)
    memory.write(keys, values)
    assert_near(memory.weight @ keys.T, values.T, 1e-11)
    delta = memory.weight - base
    other = randn(D_OUT, D_IN)
    other -= other @ keys.T @ torch.linalg.pinv(keys.T)  # leaves W k as it is
    scale = float(delta.norm() * A0.norm() * other.norm())
    assert abs(float(torch.trace(delta @ A0 @ other.T))) < 1e-9 * scale


def test_values_are_found_that_bring_the_layer_to_its_goals() -> None:
    base, A0, (keys, values) = randn(D_OUT, D_IN), prior(), pairs(7)
    memory, goals = Memory(base, A0), randn(3, D_OUT)
    memory.write(keys[:4], values[:4])
    memory.write(keys[4:], memory.values_for(keys[4:], goals, least=1e-12))
    assert_near(memory.weight @ keys[4:].T, goals.T, 1e-10)


def test_what_the_prior_resists_is_not_forced() -> None:
    """Prior 100·I, one unit key: kᵀA0⁻¹k = 0.01, so all the way there the value would be 101 times as far."""
    memory, key = Memory(torch.zeros(1, 3), 100 * torch.eye(3)), torch.tensor([[1.0, 0, 0]])
    goal = torch.tensor([[2.0]])
    assert memory.strength(key).item() == pytest.approx(0.01)
    assert memory.values_for(key, goal, least=1e-9).item() == pytest.approx(202)
    assert memory.values_for(key, goal, least=0.5).item() == pytest.approx(6)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("what", ["write", "forget", "rebuild"])
def test_what_is_not_finite_changes_nothing(what: str, broken: float) -> None:
    memory, (keys, values) = Memory(randn(D_OUT, D_IN), prior()), pairs(3)
    memory.write(keys, values)
    before = memory.weight.clone()
    bad = values[:1].clone()
    bad[0, 0] = broken
    with pytest.raises(EditError) as refused:
        getattr(memory, what)(keys[:1], bad)
    assert refused.value.reason == "not_finite"
    assert torch.equal(memory.weight, before)
    memory.forget(keys, values)
    assert torch.equal(memory.weight, memory.base)


def test_a_copy_goes_its_own_way() -> None:
    memory, (keys, values) = Memory(randn(D_OUT, D_IN), prior()), pairs(4)
    twin = memory.copy()
    twin.write(keys, values)
    assert torch.equal(memory.weight, memory.base)
    assert not torch.equal(twin.weight, memory.base)
    memory.write(keys[:1], values[:1])
    twin.forget(keys[1:], values[1:])
    assert_near(twin.weight, memory.weight, 1e-11)


def test_cost_does_not_grow_with_history() -> None:
    memory = Memory(randn(D_OUT, D_IN), prior())
    memory.write(*pairs(1))
    size = sum(value.numel() for value in vars(memory).values() if isinstance(value, torch.Tensor))
    for _ in range(30):
        memory.write(*pairs(1))
    assert size == sum(value.numel() for value in vars(memory).values() if isinstance(value, torch.Tensor))


def test_a_prior_that_cannot_be_solved_is_refused() -> None:
    with pytest.raises(EditError, match="positive definite"):
        Memory(randn(D_OUT, D_IN), torch.zeros(D_IN, D_IN))
