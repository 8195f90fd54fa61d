"""Targets of a batch sought by several workers: the editing worker cuts it into chunks and waits.

Queue messages carry the name of a job and nothing else. Job, weights and vectors are blobs in a folder that
the workers share; that a chunk is done is said by a file beside them, not by a result in Redis, which may be
flushed at any time. A chunk that nobody does in time is done here: a lost helper costs time, never a fact.
"""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from celery import Celery
from kombu.exceptions import OperationalError

from daemon.core.config.settings import Config
from daemon.core.errors import EditError
from daemon.core.fsio import write_durably
from daemon.core.log import get_logger
from daemon.core.names import TARGETS_TASK, targets_queue
from workers.editing.model import EditableModel
from workers.editing.prompts import EditRequest
from workers.editing.recipes import Recipe
from workers.editing.targets import Targets, find_targets
from workers.revisions.store import Store

log = get_logger("errata.fanout")
_LOOK = 0.02  # seconds between looks for what is done
_JOB = "job"


@dataclass(frozen=True)
class Job:
    """A chunk of a batch: whose targets to seek, at which layer, on which weights (tensor name to blob)."""

    requests: tuple[EditRequest, ...]
    layer: int
    recipe: Recipe
    prefixes: tuple[str, ...]
    weights: dict[str, str]

    def save(self, store: Store) -> str:
        """Write the job as a blob; its name."""
        document = {
            "requests": [asdict(one) for one in self.requests],
            "layer": self.layer,
            "recipe": self.recipe.model_dump(mode="json"),
            "prefixes": list(self.prefixes),
            "weights": self.weights,
        }
        data = bytearray(json.dumps(document).encode())
        return store.put({_JOB: torch.frombuffer(data, dtype=torch.uint8)})

    @classmethod
    def load(cls, store: Store, name: str) -> "Job":
        """Read a job back.

        Raises:
            CorruptBlobError, StoreError: it is damaged, or its batch is over and it was swept.
        """
        document = json.loads(bytes(store.get(name)[_JOB].tolist()))
        return cls(
            tuple(EditRequest(**one) for one in document["requests"]),
            document["layer"],
            Recipe.model_validate(document["recipe"]),
            tuple(document["prefixes"]),
            document["weights"],
        )


class FanOut:
    """``find_targets`` with the help of the target workers."""

    def __init__(self, config: Config, app: Celery) -> None:
        self._app, self._queue = app, targets_queue(config.model.name)
        self._root = config.exchange_path / config.model.name
        self._chunk, self._patience = config.edit.target_chunk, config.edit.target_seconds

    def __call__(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        layer: int,
        recipe: Recipe,
        prefixes: Sequence[str],
    ) -> Targets:
        """Keys and values of each fact at one layer, as ``find_targets``.

        Raises:
            EditError: as ``find_targets``. StoreError: the chunks cannot be written.
        """
        parts = chunks(requests, self._chunk)
        if len(parts) < 2:
            return find_targets(model, requests, layer, recipe, prefixes)
        store = Store(self._root)
        weights = {
            name: store.put({name: model.stored_weight(at)})
            for at in recipe.layers
            for name in (model.tensor_name(at),)
        }
        jobs = [
            Job(tuple(requests[i] for i in part), layer, recipe, tuple(prefixes), weights).save(store)
            for part in parts
        ]
        try:
            self._send(jobs)
            found = self._collect(store, jobs)
            for job, part in zip(jobs, parts, strict=True):
                if job not in found:
                    mine = [requests[i] for i in part]
                    found[job] = find_targets(model, mine, layer, recipe, prefixes)
        finally:
            shutil.rmtree(self._root, ignore_errors=True)
        return _in_order([found[job] for job in jobs], parts, model.device)

    def _send(self, jobs: Sequence[str]) -> None:
        try:
            for job in jobs:
                self._app.send_task(TARGETS_TASK, [job], queue=self._queue, expires=self._patience)
        except (OperationalError, OSError) as error:
            log.warning("not handed out", why=str(error))

    def _collect(self, store: Store, jobs: Sequence[str]) -> dict[str, Targets]:
        """What the helpers found; the clock starts again with each chunk that comes.

        Raises:
            EditError: a helper says that a fact is refused.
        """
        found: dict[str, Targets] = {}
        deadline = time.monotonic() + self._patience
        while len(found) < len(jobs) and time.monotonic() < deadline:
            for job in jobs:
                done = done_file(store.root, job)
                if job in found or not done.is_file():
                    continue
                said: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
                if said["reason"]:
                    raise EditError(said["message"], reason=said["reason"], culprits=said["culprits"])
                if not said["blob"]:
                    return found  # a helper failed otherwise: what is left is done here, where it is seen
                found[job] = Targets(**store.get(said["blob"]))
                deadline = time.monotonic() + self._patience
            time.sleep(_LOOK)
        if len(found) < len(jobs):
            log.warning("chunks done here", count=len(jobs) - len(found))
        return found


def save_done(store: Store, job: str, found: Targets | None, error: EditError | None = None) -> None:
    """Say that a chunk is done: with its targets, with why a fact is refused, or with nothing."""
    tensors = {f.name: getattr(found, f.name) for f in fields(Targets)} if found is not None else {}
    said = {
        "blob": store.put(tensors) if tensors else "",
        "reason": error.reason if error else "",
        "culprits": sorted(error.culprits) if error else [],
        "message": error.message if error else "",
    }
    write_durably(done_file(store.root, job), json.dumps(said).encode())


def done_file(root: Path, job: str) -> Path:
    """Where it stands that a chunk is done."""
    return root / f"{job}.done"


def chunks(requests: Sequence[EditRequest], size: int) -> list[list[int]]:
    """Rows of the requests in chunks of about ``size``; facts about one subject stay together: one key."""
    by_subject: dict[str, list[int]] = {}
    for row, request in enumerate(requests):
        by_subject.setdefault(request.subject, []).append(row)
    found: list[list[int]] = [[]]
    for rows in sorted(by_subject.values(), key=len, reverse=True):
        if found[-1] and len(found[-1]) + len(rows) > size:
            found.append([])
        found[-1] += rows
    return [part for part in found if part]


def _in_order(parts: Sequence[Targets], rows: Sequence[Sequence[int]], device: torch.device) -> Targets:
    """The targets of all chunks in the order of the requests."""
    order = torch.tensor([row for part in rows for row in part]).argsort()
    return Targets(
        *(torch.cat([getattr(one, f.name).cpu() for one in parts])[order].to(device) for f in fields(Targets))
    )
