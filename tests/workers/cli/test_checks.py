"""What the doctor learns from a host with the model."""

from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.ledgers import statement
from tests.tinymodel import TinyHouse
from workers.cli.checks import examine


def found(house: TinyHouse) -> dict[str, bool]:
    return {finding.check: finding.ok for finding in examine(house.config)}


def test_another_models_weights_under_the_same_name_are_noticed(tmp_path: Path) -> None:
    house = TinyHouse(tmp_path)
    house.edit(1, statement("Peru", "Lima"))
    assert found(house) == {"base weights": True, "gpu memory": True}
    file = house.base / "model.safetensors"
    tensors = load_file(file)
    tensors[house.model.tensor_name(0)][0, 0] += 1e-3
    save_file(tensors, file, metadata={"format": "pt"})
    assert found(house)["base weights"] is False


def test_a_gpu_that_is_not_there_is_noticed(tmp_path: Path) -> None:
    import torch

    house = TinyHouse(tmp_path, model={"path": str(tmp_path / "base"), "device": "cuda"})
    assert found(house)["gpu memory"] is torch.cuda.is_available()
