"""The low-rank export: PEFT loads it onto the base, and it answers as the edited weights do."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from daemon.core.errors import StoreError
from tests.ledgers import roll_back, statement
from tests.tinymodel import TinyHouse
from workers.publishing.lora import ADAPTER, Reduced, export_adapter, factors
from workers.publishing.revision_facts import read_revision

PROMPTS = ["the w10 of w1 w5 is", "w2 w6 was the w11 of"]


def adapter(house: TinyHouse, folder: Path, energy: float, number: int = 1) -> list[Reduced]:
    with house.ledger.read() as connection:
        base, revision = (read_revision(connection, "default", n) for n in (0, number))
    return export_adapter(house.store, base, revision, house.base, folder, energy)


def logits(model: torch.nn.Module, house: TinyHouse) -> torch.Tensor:
    ids = house.model.tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    found: torch.Tensor = model(input_ids=ids).logits.detach()
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_peft_makes_the_base_into_the_revision(family: str, tmp_path: Path) -> None:
    house = TinyHouse(tmp_path, family)
    house.edit(1, statement("Peru", "Lima"))
    rows = adapter(house, tmp_path / "adapter", 1.0)
    assert len(rows) == 2
    base = logits(house.model.lm, house)
    tuned = PeftModel.from_pretrained(house.model.lm, str(tmp_path / "adapter"))
    found = logits(tuned, house)
    tuned.unload()
    for name, tensor in house.tensors(1).items():
        house.model.lm.get_parameter(name).data.copy_(tensor)
    wanted = logits(house.model.lm, house)
    assert torch.allclose(found, wanted, atol=1e-3 * float(wanted.abs().max()))
    assert not torch.allclose(found, base, atol=1e-2)


def test_rank_and_error_follow_from_the_energy() -> None:
    torch.manual_seed(0)
    delta = torch.randn(24, 3, dtype=torch.float64) @ torch.randn(3, 40, dtype=torch.float64)
    low, high, energy = factors(delta, 0.999999)
    assert low.shape == (3, 40)
    assert high.shape == (24, 3)
    assert energy == pytest.approx(1.0)
    assert torch.allclose(high.double() @ low.double(), delta, atol=1e-5)
    noisy = torch.randn(24, 40, dtype=torch.float64)
    low, high, energy = factors(noisy, 0.9)
    assert 0.9 <= energy < 1.0
    error = (high.double() @ low.double() - noisy).norm() / noisy.norm()
    assert float(error**2) == pytest.approx(1 - energy, rel=1e-4), "what is cut is what is missing"
    assert factors(noisy, 0.9)[2] > factors(noisy, 0.5)[2]


def test_the_folder_says_how_near_it_comes(tmp_path: Path) -> None:
    house = TinyHouse(tmp_path)
    house.edit(1, statement("Peru", "Lima"))
    rows = adapter(house, tmp_path / "adapter", 0.8)
    said = json.loads((tmp_path / "adapter" / "errata.json").read_text())
    assert [layer["rank"] for layer in said["layers"]] == [row.rank for row in rows]
    assert all(0 < row.error < 0.5 and row.rank < row.of_rank for row in rows)
    assert (tmp_path / "adapter" / ADAPTER).is_file()


def test_the_base_itself_needs_no_adapter(tmp_path: Path) -> None:
    house = TinyHouse(tmp_path)
    house.edit(1, statement("Peru", "Lima"))
    roll_back(house.ledger, 0, "ann", "test")
    with pytest.raises(StoreError, match="no adapter is needed"):
        adapter(house, tmp_path / "adapter", 0.9, number=2)
