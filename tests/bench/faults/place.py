"""The site on which faults are drawn: three parts with a clock each, a reader, and a small disk."""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.bench.faults.clock import SteppedClock, build_library
from tests.bench.faults.disk import SmallDisk
from tests.bench.faults.reader import base_hashes
from tests.bench.site import REAL_WORKER, TOY_WORKER, Part, Site
from tests.bench.stream import Stream
from tests.house import CORPUS
from tests.toy import WIDE, ToyEditor

PARTS = ("worker", "daemon", "publisher")
SECOND = "daemon-second"
NOISE = "noise"
NOISE_LIMIT = 500  # refused items after which the noisy feed pauses itself
COUNTRIES = (
    "Peru", "Chad", "Fiji", "Mali", "Oman", "Cuba", "Laos", "Togo", "Iran", "Iraq", "Niger", "Kenya",
)  # fmt: skip
CITIES = ("Paris", "Rome", "Vienna", "Madrid", "Tokyo", "Cairo", "Boston", "Berlin", "London", "Moscow")
_GIB = 1 << 30
_SCHEDULE = {
    "pull_seconds": 0.5, "dispatch_seconds": 0.5, "reconcile_seconds": 1.0, "judge_seconds": 0.5,
    "keep_seconds": 3.0, "lease_seconds": 5.0,
}  # fmt: skip


class Place(Site):
    """A site with everything that the faults need."""

    def __init__(self, folder: Path, binary: Path, disk: SmallDisk, seed: int, model: Path | None) -> None:
        self.disk, self.model = disk, model
        library = build_library(folder)
        self.has_clocks = library is not None
        self.clocks = {name: SteppedClock(folder / f"{name}.clock", library) for name in (*PARTS, SECOND)}
        self.noise = folder / "noise.jsonl"
        self.noise.touch()
        self.looks = folder / "looks.jsonl"
        stream = Stream(folder / "news.jsonl", seed)
        if model is not None:
            stream = Stream(folder / "news.jsonl", seed, COUNTRIES, CITIES, hopeless=None)
        base = model or write_toy_folder(folder / "base")
        self.base = base_hashes(base)
        super().__init__(
            folder, binary, stream, _sections(base, toy=model is None), PARTS,
            worker=TOY_WORKER if model is None else REAL_WORKER,
            environments={name: clock.environment for name, clock in self.clocks.items()},
        )  # fmt: skip
        for kept in (self.config.store_path, self.config.published_path):
            disk.split_off(kept)
        self.second = self.part(SECOND, self._second_config())
        command = [sys.executable, "-m", "tests.bench.faults.reader", str(self.file), str(self.looks)]
        environment = {**self.parts["daemon"].environment, "LD_PRELOAD": ""}
        self.reader = Part("reader", command, environment, folder / "reader.log")

    def _settings(self) -> dict[str, Any]:
        settings = super()._settings()
        noise = {"kind": "jsonl", "name": NOISE, "path": str(self.noise), "trust": 10}
        settings["feeds"].append(noise | {"quarantine_limit": NOISE_LIMIT})
        return settings | {"data_dir": str(self.disk.folder / "data")}

    def _second_config(self) -> Path:
        """The configuration of a daemon on another host, which shares ledger, store and published folder."""
        data = self.disk.folder / "second"
        data.mkdir()
        for name in ("store", "published"):
            (data / name).symlink_to(self.config.data_dir / name)
        lines = self.file.read_text().splitlines()
        lines = [line for line in lines if not line.startswith("data_dir")]
        file = self.folder / "second.toml"
        head = [f'data_dir = "{data}"', f'database_url = "{self.config.ledger_url}"']
        file.write_text("\n".join([*head, *lines]) + "\n")
        return file

    def start(self) -> None:
        """Start all parts and the reader."""
        for part in (*self.parts.values(), self.reader):
            part.start()

    def close(self) -> None:
        """Kill everything."""
        self.reader.kill()
        self.second.kill()
        super().close()


def disk_size(model: Path | None) -> int:
    """The bytes of the small disk: blobs and folders of a few hundred revisions."""
    return _GIB if model is None else 6 * _GIB


def write_toy_folder(folder: Path) -> Path:
    """Write the toy as a model folder that the publisher can publish, with one tensor that nobody edits."""
    folder.mkdir()
    tensors = {name: tensor.clone() for name, tensor in ToyEditor(WIDE).published().items()}
    tensors["embeddings"] = torch.arange(4096, dtype=torch.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text('{"architectures": ["Toy"]}')
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    return folder


def _sections(base: Path, *, toy: bool) -> dict[str, Any]:
    edit = {"batch_size": 16, "batch_age_seconds": 0.5, "lease_seconds": 3.0, "resend_seconds": 3.0}
    watch: dict[str, Any] = {"cooldown_seconds": 10.0, "full_seconds": 30.0}
    if toy:
        watch |= {"delta_ceiling": 1e6, "batch_delta_ceiling": 1e6, "spectral_ceiling": 1e6}
    return {
        "model": {"path": str(base.absolute()), "device": "cpu", "corpus": str(CORPUS), "threads": 1},
        "edit": {**edit, "batch_size": 16 if toy else 4},
        "watch": watch,
        "store": {
            "reserve_bytes": 0, "keep_revisions": 200, "grace_seconds": 20.0,
            "scrub_seconds": 5.0 if toy else 60.0,
        },
        "publish": {"poll_seconds": 0.3},
        "schedule": _SCHEDULE,
        "log": {"level": "INFO"},
    }  # fmt: skip
