"""The words of the design as closed sets: states, kinds, results, queues and environment keys."""

from enum import StrEnum


class CorrectionState(StrEnum):
    """Where a correction stands; every accepted correction is in exactly one of these."""

    PENDING = "pending"  # accepted, waits for a batch
    QUEUED = "queued"  # part of a batch
    APPLIED = "applied"  # its value (or its absence) is in head's weights
    CONFIRMED = "confirmed"  # says what the ledger already holds: no edit
    SUPERSEDED = "superseded"  # a newer correction of the same fact won
    RETRACTED = "retracted"  # taken out by a «no longer true»
    REVERTED = "reverted"  # taken back by a rollback; does not come back by itself
    QUARANTINED = "quarantined"  # refused or taken back, with a reason


class BatchState(StrEnum):
    """Where a batch stands."""

    OPEN = "open"  # in the outbox, not yet sent
    SENT = "sent"  # sent to the queue
    DONE = "done"  # committed, or closed without a revision
    SPLIT = "split"  # killed its worker too often and was cut in two


class AttemptOutcome(StrEnum):
    """How an attempt at a batch ended."""

    RUNNING = "running"  # it has not ended, or its worker died
    ENDED = "ended"
    FAILED = "failed"  # the batch may be the cause; after a few of these it is split
    LATER = "later"  # something else was in the way, so the batch comes again


class RevisionKind(StrEnum):
    """How a revision came to be."""

    BASE = "base"
    EDIT = "edit"
    ROLLBACK = "rollback"
    REBUILD = "rebuild"


class RevisionState(StrEnum):
    """What the judge said of a revision."""

    CANDIDATE = "candidate"
    LIVE = "live"
    REJECTED = "rejected"


class ProbeResult(StrEnum):
    """What a probe says; a crash is unknown, never ok."""

    OK = "ok"
    DEGRADED = "degraded"
    UNKNOWN = "unknown"


class IncidentState(StrEnum):
    """Where an incident stands."""

    OPEN = "open"
    ROLLED_BACK = "rolled_back"
    FROZEN = "frozen"
    CLOSED = "closed"


class Reaction(StrEnum):
    """What was done about open incidents."""

    NOTHING = "nothing"  # nothing was open, or somebody else was faster
    ROLLED_BACK = "rolled_back"
    FROZEN = "frozen"


class AdmissionOutcome(StrEnum):
    """What became of one item at admission; closed, because it labels a metric."""

    ACCEPTED = "accepted"  # waits for a batch
    DUPLICATE = "duplicate"  # the ledger has this very statement
    STALE = "stale"  # a newer statement about the fact is there
    CONFIRMED = "confirmed"  # says what the ledger already holds
    QUARANTINED = "quarantined"  # refused, with a reason


class QuarantineState(StrEnum):
    """Where a quarantine entry stands."""

    HELD = "held"
    RELEASED = "released"
    DROPPED = "dropped"


class QuarantineReason(StrEnum):
    """Why something is in quarantine; closed, because it labels a metric."""

    NOT_JSON = "not_json"
    NOT_TEXT = "not_text"
    TOO_LARGE = "too_large"
    TOO_DEEP = "too_deep"
    SCHEMA = "schema"
    CHARSET = "charset"
    FUTURE = "future"
    UNKNOWN_RELATION = "unknown_relation"
    DENIED = "denied"
    PROTECTED = "protected"  # waits for a human, as do the next three
    LOW_TRUST = "low_trust"
    QUORUM = "quorum"
    CONTRADICTION = "contradiction"
    SUBJECT_NOT_IN_PROMPT = "subject_not_in_prompt"
    REVERTED_BEFORE = "reverted_before"
    NOT_LEARNED = "not_learned"
    NOT_FINITE = "not_finite"
    NORM = "norm"
    DAMAGE = "damage"
    CRASHED_WORKER = "crashed_worker"
    EDIT_ERROR = "edit_error"


class Role(StrEnum):
    """What the bearer of a token may do; each may do what those before it may."""

    READ = "read"  # look at status, revisions, facts, metrics
    SUBMIT = "submit"  # hand in corrections
    OPERATE = "operate"  # everything: rollbacks, and alerts, which lead to them

    def includes(self, other: "Role") -> bool:
        """Whether the bearer may do what ``other`` asks for."""
        order = list(Role)
        return order.index(self) >= order.index(other)


NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
"""What a model or a feed may be called: names of queues, leases and metrics are made of it."""

LIVE_LINK = "live"
"""The link to the published folder of the live revision, and its name among the places of publications."""

EDIT_TASK = "errata.edit"
SURVEY_TASK = "errata.survey"
ALL_PROBES = "all_probes"
"""The row that says that all probes were run on a revision."""

STORE_PROBE = "store"
"""Incidents of damaged blobs bear this name in the place of a probe's."""

TARGETS_TASK = "errata.targets"
DEFAULT_MODEL = "default"


def edit_queue(model: str) -> str:
    """The Celery queue on which the batches of ``model`` travel."""
    return f"errata.edit.{model}"


def targets_queue(model: str) -> str:
    """The Celery queue on which pieces of a batch travel whose targets others seek."""
    return f"errata.targets.{model}"


def writer_lease(model: str) -> str:
    """The lease that the one writer of ``model`` holds."""
    return f"writer:{model}"


SCHEDULER_LEASE = "scheduler"

OPERATOR = "operator"
"""The feed name of what operators submit, release or retract."""

API_FEED = "api"

UNSETTLED = (IncidentState.OPEN, IncidentState.FROZEN)
"""States of an incident that nobody has settled."""

APPROVABLE = (
    QuarantineReason.PROTECTED,
    QuarantineReason.LOW_TRUST,
    QuarantineReason.QUORUM,
    QuarantineReason.CONTRADICTION,
)
"""Reasons for which a correction waits for a human and is not wrong in itself."""
