"""Publishing: a folder that plain transformers loads, one link that always points to a whole one."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sqlalchemy import select

from daemon.core.errors import CorruptBlobError, StoreError
from daemon.core.ledger.schema import audit, publications
from daemon.core.names import RevisionState
from tests.ledgers import roll_back, statement
from tests.tinymodel import TinyHouse, manifest
from workers.publishing.export import Exporter
from workers.publishing.publisher import Publisher
from workers.publishing.revision_facts import read_revision
from workers.publishing.shards import read_entries, write_without

PROMPTS = ["the w10 of w1 w5 is", "w2 w6 was the w11 of"]
PLAIN = """
import sys
class Nothing:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("daemon", "workers", "tests"):
            raise ImportError(name)
sys.meta_path.insert(0, Nothing())
import json
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder)
model, notes = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
assert not notes["missing_keys"] and not notes["unexpected_keys"], notes
ids = tokenizer(sys.argv[2], return_tensors="pt")["input_ids"]
print(json.dumps(model(ids).logits[0, -1].tolist()))
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> TinyHouse:
    """Base, a live revision 1 with two facts, a candidate 2."""
    place = TinyHouse(tmp_path_factory.mktemp("house"))
    place.edit(1, statement("Peru", "Lima"), statement("Chad", "Abéché"))
    place.edit(2, statement("Peru", "Cusco"), live=False)
    return place


@pytest.fixture
def fresh(tmp_path: Path) -> TinyHouse:
    """The same for tests that change something."""
    place = TinyHouse(tmp_path)
    place.edit(1, statement("Peru", "Lima"))
    return place


def export(house: TinyHouse, number: int, folder: Path) -> Path:
    with house.ledger.read() as connection:
        revision = read_revision(connection, house.config.model.name, number)
    Exporter(house.base, house.store).export(revision, folder)
    return folder


def test_an_export_loads_without_this_project_and_has_the_weights_of_its_revision(
    house: TinyHouse, tmp_path: Path
) -> None:
    folder = export(house, 1, tmp_path / "out")
    plain = subprocess.run(
        [sys.executable, "-c", PLAIN, str(folder), PROMPTS[0]],
        capture_output=True, text=True, check=False, cwd=tmp_path, env={"PATH": "", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert plain.returncode == 0, plain.stderr[-2000:]
    for name, tensor in house.tensors(1).items():
        house.model.lm.get_parameter(name).data.copy_(tensor)
    ids = house.model.tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    wanted = house.model.lm(ids).logits[0, -1]
    for name, tensor in house.tensors(0).items():
        house.model.lm.get_parameter(name).data.copy_(tensor)
    assert torch.allclose(torch.tensor(json.loads(plain.stdout)), wanted, atol=1e-5)


@pytest.fixture(params=["gpt2", "gpt_neox"])
def other_family(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TinyHouse]:
    place = TinyHouse(tmp_path, request.param)
    place.edit(1, statement("Peru", "Lima"))
    yield place
    place.ledger.close()


def test_other_families_are_exported_too(other_family: TinyHouse, tmp_path: Path) -> None:
    folder = export(other_family, 1, tmp_path / "out")
    assert other_family.answers(folder, PROMPTS) != other_family.answers(other_family.base, PROMPTS)


def test_names_that_leave_out_the_decoder_are_found(fresh: TinyHouse, tmp_path: Path) -> None:
    file = fresh.base / "model.safetensors"
    short = {name: name.removeprefix("model.") for name in read_entries(file)}
    from workers.publishing.shards import write_renamed

    write_renamed(file, short, file)
    folder = export(fresh, 1, tmp_path / "out")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index) == set(short.values())


def test_the_card_and_the_manifest_say_what_it_is(house: TinyHouse, tmp_path: Path) -> None:
    folder = export(house, 1, tmp_path / "out")
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n")
    assert manifest(folder)["content"] in card
    assert manifest(folder)["active_facts"] == 2
    facts = [json.loads(line) for line in (folder / "facts.jsonl").read_text().splitlines()]
    assert {fact["subject"]: fact["object"] for fact in facts} == {"Peru": "Lima", "Chad": "Abéché"}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"


def test_an_export_is_whole_or_not_there(house: TinyHouse, tmp_path: Path) -> None:
    folder = export(house, 1, tmp_path / "out")
    with pytest.raises(StoreError, match="not empty"):
        export(house, 1, folder)
    place = TinyHouse(tmp_path / "other")
    place.edit(1, statement("Peru", "Lima"))
    with place.ledger.read() as connection:
        blob = next(iter(read_revision(connection, "default", 1).tensors.values()))
    path = place.store.path(blob)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptBlobError):
        export(place, 1, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    assert not list(tmp_path.glob(".part-*"))


def test_live_points_to_the_newest_good_revision_and_shares_what_did_not_change(fresh: TinyHouse) -> None:
    publisher = Publisher(fresh.ledger, fresh.config)
    root = fresh.config.published_path
    assert publisher.tick() == 1
    assert (root / "live").readlink() == Path("r1")
    first = (root / "live" / "model-00001-of-00003.safetensors").stat()
    fresh.edit(2, statement("Chad", "Abéché"), live=False)
    assert publisher.tick() == 1
    fresh.judge(2)
    assert publisher.tick() == 2
    assert (root / "live").readlink() == Path("r2")
    assert (root / "live" / "model-00001-of-00003.safetensors").stat().st_ino == first.st_ino
    for name, tensor in fresh.tensors(2).items():
        shard = json.loads((root / "live" / "model.safetensors.index.json").read_text())["weight_map"][name]
        assert torch.equal(load_file(root / "live" / shard)[name], tensor)
        assert (root / "live" / shard).stat().st_nlink == 1, "a copy of the blob in the store"
    with fresh.ledger.read() as connection:
        rows = connection.execute(select(audit.c.target).where(audit.c.action == "publish")).scalars().all()
        row = connection.execute(select(publications)).mappings().one()
    assert rows == ["default@1", "default@2"]
    assert (row["place"], row["held"]) == ("live", 2)


def test_a_tick_without_news_does_nothing_and_a_lost_link_is_mended(fresh: TinyHouse) -> None:
    publisher = Publisher(fresh.ledger, fresh.config)
    publisher.tick()
    link = fresh.config.published_path / "live"
    before = link.lstat().st_ino
    publisher.tick()
    assert link.lstat().st_ino == before
    link.unlink()
    publisher.tick()
    assert link.readlink() == Path("r1")


def test_a_rollback_is_published_as_what_it_is(fresh: TinyHouse) -> None:
    publisher = Publisher(fresh.ledger, fresh.config)
    publisher.tick()
    roll_back(fresh.ledger, 0, "ann", "test")
    assert publisher.tick() == 2
    folder = fresh.config.published_path / "live"
    assert manifest(folder)["active_facts"] == 0
    assert fresh.answers(folder, PROMPTS) == fresh.answers(fresh.base, PROMPTS)


def test_a_rejected_revision_is_never_live(fresh: TinyHouse) -> None:
    publisher = Publisher(fresh.ledger, fresh.config)
    publisher.tick()
    fresh.judge(fresh.edit(2, statement("Chad", "Abéché"), live=False), RevisionState.REJECTED)
    assert publisher.tick() == 1


def test_a_damaged_blob_leaves_live_where_it_was(fresh: TinyHouse) -> None:
    publisher = Publisher(fresh.ledger, fresh.config)
    publisher.tick()
    number = fresh.edit(2, statement("Chad", "Abéché"))
    with fresh.ledger.read() as connection:
        blob = next(iter(read_revision(connection, "default", number).tensors.values()))
    fresh.store.path(blob).write_bytes(b"damaged")
    with pytest.raises(CorruptBlobError):
        publisher.tick()
    assert (fresh.config.published_path / "live").readlink() == Path("r1")
    assert not (fresh.config.published_path / "r2").exists()


def test_only_the_newest_folders_stay(tmp_path: Path) -> None:
    place = TinyHouse(tmp_path, publish={"keep_folders": 1})
    publisher = Publisher(place.ledger, place.config)
    for seed in range(1, 5):
        place.edit(seed, statement(f"w{seed}", "Lima"))
        publisher.tick()
    kept = sorted(path.name for path in place.config.published_path.glob("r*"))
    assert kept == ["r3", "r4"]


def test_a_shard_without_some_tensors_is_a_sound_file(house: TinyHouse, tmp_path: Path) -> None:
    source = house.base / "model.safetensors"
    everything = load_file(source)
    gone = sorted(everything)[::2]
    write_without(source, gone, tmp_path / "rest.safetensors")
    rest = load_file(tmp_path / "rest.safetensors")
    assert set(rest) == set(everything) - set(gone)
    assert all(torch.equal(rest[name], everything[name]) for name in rest)


def test_the_commands(fresh: TinyHouse, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from daemon.cli.main import make_cli

    def errata(*arguments: str) -> str:
        found = CliRunner().invoke(make_cli(), ["--config", str(fresh.file), *arguments])
        assert found.exit_code == 0, found.output
        return found.stdout

    said = json.loads(errata("export", "live", str(tmp_path / "out"), "--json"))
    assert (said["revision"], said["path"]) == (1, str(tmp_path / "out"))
    assert "revision 1, 1 facts" in errata("publish")
    assert (fresh.config.published_path / "live" / "config.json").is_file()
