"""The errors that Errata raises on purpose, each with a stable code and an exit code."""

from collections.abc import Collection
from typing import ClassVar


class ErrataError(Exception):
    """Root of every error that Errata raises on purpose.

    ``code`` is stable and safe for logs, metrics and messages. ``retryable`` is true where the same call may
    succeed later without a change. ``hint`` tells what to do next.
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
    """Redis, the database or a worker does not answer."""

    code = "unavailable"
    retryable = True
    exit_code = 3


class ForbiddenError(ErrataError):
    """The caller's role does not allow the request."""

    code = "forbidden"


class InvalidCorrectionError(ErrataError):
    """A feed item is not a correction, for a ``reason`` of the closed set of quarantine reasons."""

    code = "invalid_correction"

    def __init__(self, reason: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class FeedError(ErrataError):
    """A feed cannot be read now."""

    code = "feed"
    retryable = True


class RateLimitedError(ErrataError):
    """A feed exceeded its rate, and its items were not taken."""

    code = "rate_limited"
    retryable = True
    exit_code = 3


class LedgerError(ErrataError):
    """The ledger is damaged, too old or too new, or refuses a change."""

    code = "ledger"
    exit_code = 4


class NotFoundError(ErrataError):
    """The revision, fact, correction or quarantine entry does not exist."""

    code = "not_found"
    exit_code = 5


class StaleHeadError(ErrataError):
    """Head moved since the work began, which must be planned again on the new head."""

    code = "stale_head"
    retryable = True


class FencedError(ErrataError):
    """A newer holder has the lease, so this one must stop."""

    code = "fenced"


class LeaseHeldError(ErrataError):
    """Another process holds the lease, which has not expired."""

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
    """No space is left on the disk, and nothing was changed."""

    code = "disk_full"
    retryable = True


class EditError(ErrataError):
    """A guard refused an edit, and the weights are unchanged.

    ``reason`` is a quarantine reason. ``culprits`` are the ids of the refused requests, empty where they are
    unknown: the batch is then halved to find them.
    """

    code = "edit"

    def __init__(
        self, message: str, *, reason: str = "edit_error", hint: str = "", culprits: Collection[str] = ()
    ) -> None:
        super().__init__(message, hint=hint)
        self.reason, self.culprits = reason, frozenset(culprits)


class ModelError(ErrataError):
    """The model cannot be loaded, or its architecture is not supported."""

    code = "model"
    exit_code = 7


class OutOfMemoryError(ErrataError):
    """Memory ran out even with the smallest chunk."""

    code = "out_of_memory"
    retryable = True


class ProbeError(ErrataError):
    """A probe could not be run, so its result is unknown."""

    code = "probe"
    retryable = True


class ConsumerError(ErrataError):
    """A consumer did not load a published revision, or answers without its facts."""

    code = "consumer"
    retryable = True


class PromptError(ErrataError):
    """The model cannot process a prompt."""

    code = "prompt"
