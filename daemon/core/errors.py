"""One tree of errors: a stable code, whether trying again can help, and what to do next."""

from collections.abc import Collection
from typing import ClassVar


class ErrataError(Exception):
    """Root of every error that Errata raises on purpose.

    ``code`` is stable and safe for logs, metrics and exit texts; ``retryable`` says whether the
    same call may succeed later without anybody changing anything; ``hint`` says what to do next.
    """

    code: ClassVar[str] = "errata"
    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """The message, with the hint behind it where there is one."""
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(ErrataError):
    """The configuration cannot be used as it is."""

    code = "config"
    exit_code = 2


class UnavailableError(ErrataError):
    """A service that is needed does not answer: Redis, the database, a worker."""

    code = "unavailable"
    retryable = True
    exit_code = 3


class ForbiddenError(ErrataError):
    """Whoever asks has a lesser role than what is asked for needs."""

    code = "forbidden"


class InvalidCorrectionError(ErrataError):
    """A feed item is no correction; ``reason`` is a closed word for metrics."""

    code = "invalid_correction"

    def __init__(self, reason: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class FeedError(ErrataError):
    """A feed cannot be read now."""

    code = "feed"
    retryable = True


class RateLimitedError(ErrataError):
    """More came in than a feed may bring; what came was not taken."""

    code = "rate_limited"
    retryable = True
    exit_code = 3


class LedgerError(ErrataError):
    """The ledger refuses: it is damaged, too old or too new."""

    code = "ledger"
    exit_code = 4


class NotFoundError(ErrataError):
    """No such revision, fact, correction or quarantine entry."""

    code = "not_found"
    exit_code = 5


class StaleHeadError(ErrataError):
    """Head moved since the work began; plan again on the new head."""

    code = "stale_head"
    retryable = True


class FencedError(ErrataError):
    """A newer holder has the lease; this one must stop."""

    code = "fenced"


class LeaseHeldError(ErrataError):
    """Another process holds the lease and it has not run out."""

    code = "lease_held"
    retryable = True


class StoreError(ErrataError):
    """A blob is missing or cannot be written."""

    code = "store"
    exit_code = 6


class CorruptBlobError(StoreError):
    """A blob is missing, or its bytes do not have the sha256 that names them."""

    code = "corrupt_blob"


class DiskFullError(StoreError):
    """No space is left for a blob; nothing was changed."""

    code = "disk_full"
    retryable = True


class EditError(ErrataError):
    """An edit was refused by a guard; the weights are as they were.

    ``reason`` is a quarantine reason; ``culprits`` are the ids of the requests that are refused, none where
    that is not known: then a batch is halved to find them.
    """

    code = "edit"

    def __init__(
        self, message: str, *, reason: str = "edit_error", hint: str = "", culprits: Collection[str] = ()
    ) -> None:
        super().__init__(message, hint=hint)
        self.reason, self.culprits = reason, frozenset(culprits)


class ModelError(ErrataError):
    """The model cannot be loaded or is of an architecture that is not known."""

    code = "model"
    exit_code = 7


class OutOfMemoryError(ErrataError):
    """The device or host ran out of memory even at the smallest chunk."""

    code = "out_of_memory"
    retryable = True


class ProbeError(ErrataError):
    """A probe could not be run; its result is unknown, never ok."""

    code = "probe"
    retryable = True


class ConsumerError(ErrataError):
    """A consumer did not take a published revision, or does not answer what it was taught."""

    code = "consumer"
    retryable = True


class PromptError(ErrataError):
    """A prompt that the model cannot take."""

    code = "prompt"
