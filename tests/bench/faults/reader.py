"""A process that reads the published folder over and over and compares it with the ledger.

    python -m tests.bench.faults.reader CONFIG LOOKS

Appends a JSON line for each look to the file LOOKS until it is killed.
"""

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from sqlalchemy import select

from daemon.core.config.settings import Config, load_config
from daemon.core.errors import ErrataError
from daemon.core.ledger.database import open_engine
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import probe_results, revisions
from daemon.core.names import LIVE_LINK, RevisionState
from workers.publishing.revision_facts import RevisionFacts, read_revision
from workers.publishing.shards import INDEX, file_name_of, files_of

_PAUSE = 0.1  # seconds between looks
_SHARE = 3.0  # pauses are this much longer than looks at least, for the machine has other work to do
_STABLE = (
    "model", "revision", "kind", "content", "content_of", "recipe", "tensors", "norms",
    "active_facts", "facts_held_absent", "sources",
)  # fmt: skip
"""Fields of the manifest that never change after a revision was published. Dates may: a clock that was set
back moves those that were in the future."""
_DIGITS = re.compile(r"[0-9]+")  # of the revision in the name of a folder, such as r12
_PROBE = ("probe", "version", "result", "score", "bound", "items")


@dataclass(frozen=True)
class Look:
    """One look at ``live``: when it began and ended, what it found, and what was wrong (nothing: sound)."""

    began: float
    ended: float
    revision: int | None
    wrong: str


@dataclass(frozen=True)
class Damage:
    """Damage that was done to the published folder on purpose."""

    at: float
    what: str


class Reader:
    """Looks at the published folder of a site."""

    def __init__(self, config: Config) -> None:
        self._root, self._model = config.published_path, config.model.name
        self._ledger = Ledger(open_engine(config.ledger_url))
        self._base_files = files_of(config.model_path)
        self._base = base_hashes(config.model_path)
        self._expected: dict[int, RevisionFacts] = {}
        self._was_there = False

    def look(self) -> Look | None:
        """Read everything behind ``live`` once, or return None where ``live`` moved on meanwhile."""
        began = time.monotonic()
        link = self._link()
        if link is None:
            return Look(began, time.monotonic(), None, "live is gone") if self._was_there else None
        self._was_there = True
        number = int(_DIGITS.findall(link)[0])
        try:
            wrong = self._compare(self._root / link, self._facts_of(number))
        except ErrataError:
            return None  # the ledger does not answer at this moment
        except Exception as error:  # noqa: BLE001  a broken file may raise anything
            wrong = f"{type(error).__name__}: {error}"[:200]
        if wrong and self._link() != link:
            return None
        return Look(began, time.monotonic(), number, wrong)

    def _link(self) -> str | None:
        try:
            return (self._root / LIVE_LINK).readlink().name
        except OSError:
            return None

    def _facts_of(self, number: int) -> RevisionFacts:
        if number not in self._expected:
            with self._ledger.read() as connection:
                self._expected[number] = read_revision(connection, self._model, number)
        return self._expected[number]

    def _probes_of(self, revision: RevisionFacts) -> list[dict[str, Any]]:
        """Every measurement of a revision's content, of which a manifest has the newest at its time."""
        same = select(revisions.c.number).where(
            revisions.c.model == self._model, revisions.c.content == revision.content
        )
        query = select(*(probe_results.c[key] for key in _PROBE)).where(
            probe_results.c.model == self._model, probe_results.c.revision.in_(same)
        )
        with self._ledger.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def _compare(self, folder: Path, expected: RevisionFacts) -> str:
        """What is wrong with a folder, or nothing."""
        manifest = json.loads((folder / "errata.json").read_text(encoding="utf-8"))
        wanted = json.loads(json.dumps(expected.manifest()))
        for key in _STABLE:
            if manifest[key] != wanted[key]:
                return f"errata.json: {key} is not the ledger's"
        if manifest["state"] not in list(RevisionState):
            return "errata.json: no such state"
        measured = self._probes_of(expected)
        if any({key: probe[key] for key in _PROBE} not in measured for probe in manifest["probes"]):
            return "errata.json: the ledger has no such measurement"
        lines = (folder / "facts.jsonl").read_text(encoding="utf-8").splitlines()
        if [json.loads(line) for line in lines] != json.loads(json.dumps(list(expected.facts))):
            return "facts.jsonl is not the ledger's"
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return self._compare_tensors(folder, expected)

    def _compare_tensors(self, folder: Path, expected: RevisionFacts) -> str:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        if set(index) != set(self._base):
            return "the index does not name the model's tensors"
        edited = {
            file_name_of(name, self._base_files): (name, blob) for name, blob in expected.tensors.items()
        }
        for file in sorted(set(index.values())):
            for name, tensor in load((folder / file).read_bytes()).items():
                if index.get(name) != file:
                    return f"{file} holds {name}, which the index places elsewhere"
                if name not in edited and tensor_hash(tensor) != self._base[name]:
                    return f"{name} is not the base model's"
                if name in edited and blob_of(edited[name][0], tensor) != edited[name][1]:
                    return f"{name} is not the ledger's"
        return ""


def base_hashes(model: Path) -> dict[str, str]:
    """The hash of each tensor of a model folder."""
    files = files_of(model)
    read = {file: load(file.read_bytes()) for file in set(files.values())}
    return {name: tensor_hash(read[file][name]) for name, file in files.items()}


def tensor_hash(tensor: torch.Tensor) -> str:
    """The sha256 of a tensor's dtype, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def blob_of(name: str, tensor: torch.Tensor) -> str:
    """The name of the blob that holds a tensor."""
    return hashlib.sha256(save({name: tensor.contiguous()})).hexdigest()


def read_looks(file: Path) -> list[Look]:
    """The looks of a file, in their order."""
    if not file.exists():
        return []
    looks = []
    for line in file.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):  # the last line of a reader that was killed
            looks.append(Look(**json.loads(line)))
    return looks


def broken_looks(looks: Iterable[Look], damages: Iterable[Damage], bound: float) -> list[str]:
    """The looks that found something wrong that nobody had damaged on purpose, or longer than ``bound`` ago.

    Damage is over with the first sound look that began after it.
    """
    sound = sorted(look.began for look in looks if not look.wrong)
    ends = [
        (damage.at, min(next((at for at in sound if at > damage.at), damage.at + bound), damage.at + bound))
        for damage in damages
    ]
    return [
        f"revision {look.revision} at {look.began:.1f} s: {look.wrong}" for look in looks
        if look.wrong and not any(at <= look.ended and look.began <= end for at, end in ends)
    ]  # fmt: skip


def mending_times(looks: Iterable[Look], damages: Iterable[Damage], bound: float) -> list[float]:
    """For how many seconds each damage was seen, at most ``bound``.

    Damage that nobody saw is left out.
    """
    seen = list(looks)
    times = []
    for damage in damages:
        after = [look for look in seen if look.began > damage.at]
        sound = next((look.began for look in after if not look.wrong), damage.at + bound)
        if any(look.wrong for look in after if look.began < sound):
            times.append(min(sound - damage.at, bound))
    return times


def main(arguments: Sequence[str]) -> None:
    torch.set_num_threads(1)
    config, sink = load_config(Path(arguments[1])), Path(arguments[2])
    reader = Reader(config)
    with sink.open("a", encoding="utf-8") as stream:
        while os.getppid() != 1:
            look = reader.look()
            took = 0.0
            if look is not None:
                document: dict[str, Any] = asdict(look)
                stream.write(json.dumps(document) + "\n")
                stream.flush()
                took = look.ended - look.began
            time.sleep(max(_PAUSE, _SHARE * took))


if __name__ == "__main__":
    main(sys.argv)
