"""The closed sets of states, kinds, results and reasons, and the names of queues and leases."""

from enum import StrEnum


class CorrectionState(StrEnum):
    """The state of an accepted correction, which has exactly one."""

    PENDING = "pending"  # accepted, waits for a batch
    QUEUED = "queued"  # part of a batch
    APPLIED = "applied"  # its value (or its absence) is in head's weights
    CONFIRMED = "confirmed"  # states what the ledger already holds, so nothing is edited
    SUPERSEDED = "superseded"  # a newer correction of the same fact won
    RETRACTED = "retracted"  # taken out by a correction without object
    REVERTED = "reverted"  # taken back by a rollback; only self-healing may apply it again by itself
    QUARANTINED = "quarantined"  # refused or taken back, with a reason


class BatchState(StrEnum):
    """The state of a batch."""

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
    """The state of a revision, as the judge decided or a rollback left it."""

    CANDIDATE = "candidate"
    LIVE = "live"
    REJECTED = "rejected"  # judged degraded, or taken back by a rollback


class RollbackCause(StrEnum):
    """Who or what moved head back, a closed set that programs can rely on."""

    JUDGE = "judge"  # the daemon, for probes that it judged degraded
    ALERT = "alert"  # an alert of the monitoring
    OPERATOR = "operator"
    BISECT = "bisect"
    RECOVERY = "recovery"  # head's blobs were damaged


AUTOMATIC = (RollbackCause.JUDGE, RollbackCause.ALERT)
"""The causes of a rollback that evidence led to, without a human."""


class ProbeResult(StrEnum):
    """The result of a probe, which is unknown after a crash."""

    OK = "ok"
    DEGRADED = "degraded"
    UNKNOWN = "unknown"


class Subject(StrEnum):
    """What an incident accuses, a closed set because it labels a metric."""

    REVISION = "revision"  # the only one that a rollback can answer
    FEED = "feed"
    STORE = "store"
    CONSUMER = "consumer"
    HOST = "host"
    CORRECTIONS = "corrections"  # that an automatic rollback took back and that stay out


class IncidentState(StrEnum):
    """The state of an incident."""

    OPEN = "open"
    ROLLED_BACK = "rolled_back"
    FROZEN = "frozen"
    CLOSED = "closed"


class Reaction(StrEnum):
    """The reaction to open incidents."""

    NOTHING = "nothing"  # nothing was open, or another process reacted first
    ROLLED_BACK = "rolled_back"
    FROZEN = "frozen"


class AdmissionOutcome(StrEnum):
    """The outcome of admission for one item, a closed set because it labels a metric."""

    ACCEPTED = "accepted"  # waits for a batch
    DUPLICATE = "duplicate"  # the ledger has this very statement
    STALE = "stale"  # a newer statement about the fact is there
    CONFIRMED = "confirmed"  # states what the ledger already holds
    QUARANTINED = "quarantined"  # refused, with a reason


class QuarantineState(StrEnum):
    """The state of a quarantine entry."""

    HELD = "held"
    RELEASED = "released"
    DROPPED = "dropped"


class QuarantineReason(StrEnum):
    """The reason for quarantine, a closed set because it labels a metric."""

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
    """What the bearer of a token may do, each role including those before it."""

    READ = "read"  # look at status, revisions, facts, metrics
    SUBMIT = "submit"  # hand in corrections
    OPERATE = "operate"  # everything, such as rollbacks and the alerts that lead to them

    def includes(self, other: "Role") -> bool:
        """Return whether this role may do what needs the role ``other``."""
        order = list(Role)
        return order.index(self) >= order.index(other)


class ProcessRole(StrEnum):
    """What a process that sends heartbeats is there for."""

    DAEMON = "daemon"  # errata run: scheduler and API
    WORKER = "worker"  # edits
    TARGETS = "targets"  # finds targets for the worker
    PUBLISHER = "publisher"  # errata publish --follow
    COMPLETIONS = "completions"  # errata serve


NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
"""Names of models and feeds, which become part of names of queues, leases and metrics."""

LIVE_LINK = "live"
"""The link to the published folder of the live revision, and its name among the places of publications."""

EDIT_TASK = "errata.edit"
SURVEY_TASK = "errata.survey"
ALL_PROBES = "all_probes"
"""The probe name of the row that records that all probes were run on a revision."""

STORE_PROBE = "store"
"""The probe name of incidents about damaged blobs."""

BISECT_PROBE = "bisect"
"""The probe name of incidents about corrections that an automatic rollback took back and that stay out."""

TARGETS_TASK = "errata.targets"
DEFAULT_MODEL = "default"


def edit_queue(model: str) -> str:
    """Return the name of the Celery queue of the batches of ``model``."""
    return f"errata.edit.{model}"


def targets_queue(model: str) -> str:
    """Return the name of the Celery queue of the chunks that the target workers of ``model`` take."""
    return f"errata.targets.{model}"


def writer_lease(model: str) -> str:
    """Return the name of the lease that the one writer of ``model`` holds."""
    return f"writer:{model}"


def scheduler_lease(model: str) -> str:
    """Return the name of the lease of the daemon that leads for ``model``."""
    return f"scheduler:{model}"


def worker_lease(model: str) -> str:
    """Return the name of the lease of the worker that takes the batches of ``model`` from the queue."""
    return f"worker:{model}"


OPERATOR = "operator"
"""The feed name of corrections that operators submit, release or retract."""

API_FEED = "api"

UNSETTLED = (IncidentState.OPEN, IncidentState.FROZEN)
"""The states of an unsettled incident."""

APPROVABLE = (
    QuarantineReason.PROTECTED,
    QuarantineReason.LOW_TRUST,
    QuarantineReason.QUORUM,
    QuarantineReason.CONTRADICTION,
)
"""The reasons for which a well-formed correction waits for a human."""
