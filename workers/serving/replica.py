"""A model that follows the live revision and answers requests one after the other.

One thread owns the model. It takes requests from a queue and loads the weights of a newer revision between
two of them, so each answer comes from one revision and a swap drops no request.
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
_IDLE = 0.1  # seconds between looks for new weights while no request waits; a swap may be that late

_GRACE_SECONDS = 1.5  # for the request in progress at the end, and for the threads after it


@dataclass(frozen=True)
class ServedRevision:
    """The revision that answers a request."""

    revision: int
    content: str


@dataclass(frozen=True)
class Weights:
    """The edited tensors of a revision that is to be loaded into the model."""

    revision: ServedRevision
    tensors: Mapping[str, torch.Tensor]


class GenerationRequest:
    """One request, whose events arrive in a queue of the event loop that made it.

    In order: a ServedRevision, the pieces of each prompt's answer with the prompt's index, None at the end.
    An ErrataError instead of any of them is the last event.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        self.prompts, self.sampling = prompts, sampling
        self.events: asyncio.Queue[ServedRevision | tuple[int, Piece] | ErrataError | None] = asyncio.Queue()
        self.cancelled = threading.Event()
        self._loop = asyncio.get_running_loop()

    def tell(self, event: ServedRevision | tuple[int, Piece] | ErrataError | None) -> None:
        """Put an event into the queue from the model's thread."""
        try:
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the event loop is closed
            self.cancelled.set()


class Replica:
    """A model, its queue of requests, and the threads that answer them and follow the live revision."""

    def __init__(self, ledger: Ledger, store: Store, model: EditableModel, config: Config) -> None:
        self.model = model
        self._ledger, self._store, self._name = ledger, store, config.model.name
        self._poll = config.serve.poll_seconds
        self._requests: queue.Queue[GenerationRequest] = queue.Queue(config.serve.queue_bound)
        self._next: queue.SimpleQueue[Weights] = queue.SimpleQueue()
        self._stop, self._abandons = threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name="model", daemon=True),
            threading.Thread(target=self._follow, name="follow", daemon=True),
        ]
        self.served = ServedRevision(-1, "")

    def start(self) -> None:
        """Load the live revision and start both threads.

        Raises:
            NotFoundError: there is no revision.
            CorruptBlobError, StoreError: it cannot be loaded.
        """
        weights = self._newer()
        if weights is not None:
            self._next.put(weights)
        self._swap()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End after the request in progress and answer waiting ones with an UnavailableError.

        A request that takes longer than a moment is ended with that error too.
        """
        self._stop.set()
        self._threads[0].join(_GRACE_SECONDS)
        self._abandons.set()
        for thread in self._threads:
            thread.join(_GRACE_SECONDS)
        while not self._requests.empty():
            self._requests.get_nowait().tell(UnavailableError("the server is stopping"))

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request.

        Raises:
            UnavailableError: the queue is full, or the server is stopping.
        """
        if self._stop.is_set():
            raise UnavailableError("the server is stopping")
        try:
            self._requests.put_nowait(request)
        except queue.Full:
            raise UnavailableError("the queue of requests is full", hint="try again in a moment") from None

    # -- the model's thread ---------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._stop.is_set():
            self._swap()
            try:
                request = self._requests.get(timeout=_IDLE)
            except queue.Empty:
                continue
            self._swap()
            self._answer(request)

    def _answer(self, request: GenerationRequest) -> None:
        if request.cancelled.is_set():
            return
        request.tell(self.served)
        try:
            for index, prompt in enumerate(request.prompts):
                for piece in stream(self.model, prompt, request.sampling):
                    request.tell((index, piece))
                    if request.cancelled.is_set():
                        return
                    if self._abandons.is_set():
                        request.tell(UnavailableError("the server is stopping", hint="send it again"))
                        return
        except Exception as error:  # the thread's edge: one failed request must not end the thread
            log.exception("request failed")
            request.tell(UnavailableError(f"the model failed: {type(error).__name__}"))
            return
        request.tell(None)

    def _swap(self) -> None:
        """Load the newest of the waiting revisions into the model."""
        weights = None
        while not self._next.empty():
            weights = self._next.get()
        if weights is None:
            return
        with torch.no_grad():
            for name, tensor in weights.tensors.items():
                self.model.lm.get_parameter(name).copy_(tensor)
        self.served = weights.revision
        log.info("serving", revision=self.served.revision, content=self.served.content[:12])

    # -- the following thread -------------------------------------------------------------------------

    def _follow(self) -> None:
        seen = self.served
        while not self._stop.wait(self._poll):
            try:
                weights = self._newer(seen)
            except ErrataError as error:
                log.warning("live revision not loaded", code=error.code, error=str(error))
                continue
            if weights is not None:
                seen = weights.revision
                self._next.put(weights)

    def _newer(self, than: ServedRevision | None = None) -> Weights | None:
        """The weights of the live revision, or of head where none is live, unless it is ``than``."""
        with self._ledger.read() as connection:
            row: Any = live(connection, self._name) or head(connection, self._name)
        revision = ServedRevision(int(row["number"]), row["content"])
        if revision == than:
            return None
        return Weights(revision, load_tensors(self._store, row["tensors"]))
