"""A model that follows the live revision and answers by it, one request after the other.

One thread owns the model: it takes requests from a queue and, between two of them, puts in the weights of a
newer revision. So no answer is of two revisions, and no request is dropped by a swap.
"""

import asyncio
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from daemon.core.config.settings import Config
from daemon.core.errors import ErrataError, UnavailableError
from daemon.core.ledger.chain import head, live
from daemon.core.ledger.ledger import Ledger
from daemon.core.log import get_logger
from workers.editing.model import EditableModel
from workers.revisions.loading import load_tensors
from workers.revisions.store import Store
from workers.serving.generation import Piece, Sampling, stream

log = get_logger("errata.serve")
_IDLE = 0.1  # seconds between looks for a swap when nobody asks


@dataclass(frozen=True)
class Identity:
    """The revision by which a request is answered."""

    revision: int
    content: str


@dataclass(frozen=True)
class Weights:
    """A revision that waits to be put into the model."""

    identity: Identity
    tensors: Mapping[str, torch.Tensor]


class Job:
    """One request; its events arrive in ``events`` of the loop that made it.

    In order: an Identity, then for each prompt its pieces, then None; or an ErrataError that ends it.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        self.prompts, self.sampling = prompts, sampling
        self.events: asyncio.Queue[Identity | tuple[int, Piece] | ErrataError | None] = asyncio.Queue()
        self.cancelled = threading.Event()
        self._loop = asyncio.get_running_loop()

    def tell(self, event: Identity | tuple[int, Piece] | ErrataError | None) -> None:
        """Hand over an event from the model's thread."""
        try:
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the loop is closed: nobody listens any more
            self.cancelled.set()


class Replica:
    """The model, its queue, and the two threads that keep it going."""

    def __init__(self, ledger: Ledger, store: Store, model: EditableModel, config: Config) -> None:
        self.model = model
        self._ledger, self._store, self._name = ledger, store, config.model.name
        self._poll = config.serve.poll_seconds
        self._jobs: queue.Queue[Job] = queue.Queue(config.serve.queue_bound)
        self._next: queue.SimpleQueue[Weights] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name="model", daemon=True),
            threading.Thread(target=self._follow, name="follow", daemon=True),
        ]
        self.identity = Identity(-1, "")

    def start(self) -> None:
        """Load the live revision, then answer and follow.

        Raises:
            NotFoundError: there is no revision. CorruptBlobError, StoreError: it cannot be loaded.
        """
        weights = self._newer()
        if weights is not None:
            self._next.put(weights)
        self._swap()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End after the request in progress; those that wait are told to come later."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        while not self._jobs.empty():
            self._jobs.get_nowait().tell(UnavailableError("the server is stopping"))

    def submit(self, job: Job) -> None:
        """Queue a request.

        Raises:
            UnavailableError: too many wait already, or the server is stopping.
        """
        if self._stop.is_set():
            raise UnavailableError("the server is stopping")
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise UnavailableError("too many requests wait", hint="try again in a moment") from None

    # -- the model's thread ---------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._stop.is_set():
            self._swap()
            try:
                job = self._jobs.get(timeout=_IDLE)
            except queue.Empty:
                continue
            self._swap()
            self._answer(job)

    def _answer(self, job: Job) -> None:
        if job.cancelled.is_set():
            return
        job.tell(self.identity)
        try:
            for index, prompt in enumerate(job.prompts):
                for piece in stream(self.model, prompt, job.sampling):
                    job.tell((index, piece))
                    if job.cancelled.is_set():
                        return
        except Exception as error:  # the thread's edge: one request fails, the next is answered
            log.exception("request failed")
            job.tell(UnavailableError(f"the model failed: {type(error).__name__}"))
            return
        job.tell(None)

    def _swap(self) -> None:
        """Put the newest of the waiting revisions into the model."""
        weights = None
        while not self._next.empty():
            weights = self._next.get()
        if weights is None:
            return
        with torch.no_grad():
            for name, tensor in weights.tensors.items():
                self.model.lm.get_parameter(name).copy_(tensor)
        self.identity = weights.identity
        log.info("serves", revision=self.identity.revision, content=self.identity.content[:12])

    # -- the following thread -------------------------------------------------------------------------

    def _follow(self) -> None:
        seen = self.identity
        while not self._stop.wait(self._poll):
            try:
                weights = self._newer(seen)
            except ErrataError as error:
                log.warning("not followed", code=error.code, error=str(error))
                continue
            if weights is not None:
                seen = weights.identity
                self._next.put(weights)

    def _newer(self, than: Identity | None = None) -> Weights | None:
        """The live revision (without one: head's), unless it is ``than``."""
        with self._ledger.read() as connection:
            row: Any = live(connection, self._name) or head(connection, self._name)
        identity = Identity(int(row["number"]), row["content"])
        if identity == than:
            return None
        return Weights(identity, load_tensors(self._store, row["tensors"]))
