"""Find the targets of a batch with several workers: the editing worker cuts it into chunks and waits.

Queue messages carry the name of a job and nothing else. Job, weights and vectors are blobs in a folder that
the workers share. A file beside them marks a chunk as done, because a result in Redis may be flushed at any
time. The editing worker does chunks that do not come in time itself, so a lost helper costs time only.
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
from workers.bench.baselines.registry import method
from workers.editing.model import EditableModel
from workers.editing.prompts import EditRequest
from workers.editing.recipes import Recipe
from workers.editing.targets import Targets, find_targets
from workers.revisions.store import Store

log = get_logger("errata.fanout")
_LOOK = 0.02  # seconds between two looks for finished chunks: short beside a chunk, which takes seconds
_JOB = "job"


@dataclass(frozen=True)
class TargetJob:
    """A chunk of a batch: the facts, the layer of the targets, and the weights (tensor name to blob)."""

    requests: tuple[EditRequest, ...]
    layer: int
    recipe: Recipe
    prefixes: tuple[str, ...]
    weights: dict[str, str]

    def save(self, store: Store) -> str:
        """Write the job as a blob and return the blob's name."""
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
    def load(cls, store: Store, name: str) -> "TargetJob":
        """Read a job back.

        Raises:
            CorruptBlobError, StoreError: it is damaged, or its batch has ended and the folder was deleted.
        """
        document = json.loads(bytes(store.get(name)[_JOB].tolist()))
        return cls(
            tuple(EditRequest(**one) for one in document["requests"]),
            document["layer"],
            method(document["recipe"]["name"]).recipe.model_validate(document["recipe"]),
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
            EditError: as ``find_targets``.
            StoreError: the chunks cannot be written.
        """
        parts = chunks(requests, self._chunk)
        if len(parts) < 2:
            return find_targets(model, requests, layer, recipe, prefixes)
        store = Store(self._root)
        edited = {model.tensor_name(at): model.stored_weight(at) for at in recipe.layers}
        weights = {name: store.put({name: tensor}) for name, tensor in edited.items()}
        jobs = [
            TargetJob(tuple(requests[i] for i in part), layer, recipe, tuple(prefixes), weights).save(store)
            for part in parts
        ]
        try:
            self._send(jobs)
            targets = self._collect(store, jobs)
            for job, part in zip(jobs, parts, strict=True):
                if job not in targets:
                    chunk = [requests[i] for i in part]
                    targets[job] = find_targets(model, chunk, layer, recipe, prefixes)
        finally:
            shutil.rmtree(self._root, ignore_errors=True)
        return _in_order([targets[job] for job in jobs], parts, model.device)

    def _send(self, jobs: Sequence[str]) -> None:
        try:
            for job in jobs:
                self._app.send_task(TARGETS_TASK, [job], queue=self._queue, expires=self._patience)
        except (OperationalError, OSError) as error:
            log.warning("target jobs not sent", why=str(error))

    def _collect(self, store: Store, jobs: Sequence[str]) -> dict[str, Targets]:
        """The targets that helpers found.

        Each finished chunk starts the time limit again.

        Raises:
            EditError: a helper refused a fact.
        """
        targets: dict[str, Targets] = {}
        deadline = time.monotonic() + self._patience
        while len(targets) < len(jobs) and time.monotonic() < deadline:
            for job in jobs:
                done = done_file(store.root, job)
                if job in targets or not done.is_file():
                    continue
                result: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
                if result["reason"]:
                    raise EditError(result["message"], reason=result["reason"], culprits=result["culprits"])
                if not result["blob"]:
                    return targets  # a helper failed for another reason; doing the rest here shows it
                targets[job] = Targets(**store.get(result["blob"]))
                deadline = time.monotonic() + self._patience
            time.sleep(_LOOK)
        if len(targets) < len(jobs):
            log.warning("chunks done here", count=len(jobs) - len(targets))
        return targets


def save_done(store: Store, job: str, targets: Targets | None, error: EditError | None = None) -> None:
    """Mark a chunk as done, with its targets, with the refusal of a fact, or with neither after a failure."""
    tensors = {f.name: getattr(targets, f.name) for f in fields(Targets)} if targets is not None else {}
    result = {
        "blob": store.put(tensors) if tensors else "",
        "reason": error.reason if error else "",
        "culprits": sorted(error.culprits) if error else [],
        "message": error.message if error else "",
    }
    write_durably(done_file(store.root, job), json.dumps(result).encode())


def done_file(root: Path, job: str) -> Path:
    """The file that marks a chunk as done."""
    return root / f"{job}.done"


def chunks(requests: Sequence[EditRequest], size: int) -> list[list[int]]:
    """Cut the rows of the requests into chunks of about ``size``, with all facts about a subject in one."""
    by_subject: dict[str, list[int]] = {}
    for row, request in enumerate(requests):
        by_subject.setdefault(request.subject, []).append(row)
    parts: list[list[int]] = [[]]
    for rows in sorted(by_subject.values(), key=len, reverse=True):
        if parts[-1] and len(parts[-1]) + len(rows) > size:
            parts.append([])
        parts[-1] += rows
    return [part for part in parts if part]


def _in_order(parts: Sequence[Targets], rows: Sequence[Sequence[int]], device: torch.device) -> Targets:
    """The targets of all chunks in the order of the requests."""
    order = torch.tensor([row for part in rows for row in part]).argsort()
    return Targets(
        *(torch.cat([getattr(one, f.name).cpu() for one in parts])[order].to(device) for f in fields(Targets))
    )
