"""The ledger's tables, as the numbered migrations leave them."""

from sqlalchemy import Column, ForeignKeyConstraint, Index, MetaData, Table, UniqueConstraint, true
from sqlalchemy.types import JSON, BigInteger, Boolean, Float, Integer, String, Text

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_N_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

corrections = Table(
    "corrections",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("fact_id", String(32), nullable=False),
    Column("model", String(64), nullable=False),
    Column("subject", Text, nullable=False),
    Column("relation", Text, nullable=False),
    Column("prompt", Text, nullable=False),
    Column("object", Text),  # NULL: no longer true
    Column("paraphrases", JSON, nullable=False),
    Column("neighborhood", JSON, nullable=False),
    Column("source", Text, nullable=False),
    Column("feed", String(64), nullable=False),
    Column("trust", Integer, nullable=False),
    Column("order_key", Text, nullable=False),
    Column("admitted_at", String(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("batch_id", String(32)),
    Column("came_back", Integer),  # the automatic rollback after which it was written again by itself
    Index("ix_corrections_fact_state", "fact_id", "state"),
    Index("ix_corrections_model_state", "model", "state", "seq"),
    Index("ix_corrections_batch", "batch_id"),
)

batches = Table(
    "batches",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("model", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("sent_at", String(32)),
    Column("sends", Integer, nullable=False, default=0),
    Column("closed_at", String(32)),
    Column("rollback", Integer),  # the rollback of which this is a portion for bisect; NULL: an edit
    Index("ix_batches_state", "state", "model"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("batch_id", String(32), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("worker", String(128), nullable=False),
    Column("started_at", String(32), nullable=False),
    Column("ended_at", String(32)),
    Column("outcome", String(16), nullable=False),  # an AttemptOutcome
    Column("error", Text, nullable=False, server_default=""),
    Column("probe", String(64)),  # the probe that runs, or during which the worker died
)

# The primary key makes the insert of a revision a compare-and-swap on head.
revisions = Table(
    "revisions",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("parent", Integer),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("content", String(64), nullable=False),
    Column("tensors", JSON, nullable=False),  # name -> sha256 of the tensor's blob
    Column("content_of", Integer),  # rollback: the revision whose content this is
    Column("batch_id", String(32)),
    Column("token", Integer, nullable=False),
    Column("recipe", Text, nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("stages", JSON, nullable=False),  # stage -> seconds
    Column("norms", JSON, nullable=False),  # layer -> norm of the change against the original norm
    Column("active_facts", Integer, nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("kept", Boolean, nullable=False, server_default=true()),  # its tensors are still in the store
    Column("cause", String(16)),  # rollback: a RollbackCause
    Column("who", Text),  # rollback: by whom
    Column("taken_back_by", Integer),  # the rollback that left this revision behind; NULL: head holds it
    Column("state_before", String(16)),  # what ``state`` would be if it had not been taken back
    UniqueConstraint("batch_id"),
    ForeignKeyConstraint(["model", "parent"], ["revisions.model", "revisions.number"]),
)

# A correction holds its fact from revision ``since`` up to, not including, ``until``; NULL: it does at head.
tenures = Table(
    "tenures",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("model", String(64), nullable=False),
    Column("fact_id", String(32), nullable=False),
    Column("correction_id", String(32), nullable=False),
    Column("since", Integer, nullable=False),
    Column("until", Integer),
    Column("blob", String(64)),  # file of associations; NULL: the fact is held absent
    Column("row", Integer),  # row in that file
    Index("ix_tenures_open", "model", "until", "since"),
    Index("ix_tenures_fact", "fact_id", "since"),
    Index("ix_tenures_correction", "correction_id"),
)

probe_results = Table(
    "probe_results",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("model", String(64), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("probe", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("result", String(16), nullable=False),
    Column("score", Float),
    Column("bound", Float),
    Column("items", Integer, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("details", JSON, nullable=False),
    Column("outcomes", JSON),  # one value an item, see daemon.core.ledger.outcomes
    Column("measured_at", String(32), nullable=False),
    Index("ix_probe_results_revision", "model", "revision", "probe"),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(96), primary_key=True),
    Column("holder", String(128), nullable=False),
    Column("token", Integer, nullable=False),
    Column("expires_at", String(32), nullable=False),  # by the wall clock, for people
    Column("note", Text, nullable=False, default=""),
    Column("seconds", Float),  # its length; 0: given back; NULL: an older Errata wrote it
    Column("boot", String(64), nullable=False, server_default=""),  # whose monotonic clock ``renewed`` is of
    Column("renewed", Float, nullable=False, server_default="0"),
)

feeds = Table(
    "feeds",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("cursor", JSON, nullable=False),
    Column("items", BigInteger, nullable=False, default=0),
    Column("error", Text, nullable=False, default=""),
    Column("pulled_at", String(32)),
)

feed_outcomes = Table(
    "feed_outcomes",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("feed", String(64), primary_key=True),
    Column("outcome", String(32), primary_key=True),
    Column("count", BigInteger, nullable=False),
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("model", String(64), nullable=False, server_default=""),
    Column("feed", String(64), nullable=False),
    Column("position", String(128), nullable=False),
    Column("reason", String(32), nullable=False),
    Column("message", Text, nullable=False),
    Column("raw", Text, nullable=False),
    Column("correction_id", String(32)),
    Column("state", String(16), nullable=False),
    Column("at", String(32), nullable=False),
    Index("ix_quarantine_state", "state", "reason"),
)

# Answers to deliveries that bore a key: the same key gives the same answer.
deliveries = Table(
    "deliveries",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("feed", String(64), primary_key=True),
    Column("key", String(128), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("answer", JSON, nullable=False),
    Column("at", String(32), nullable=False),
    Index("ix_deliveries_at", "at"),
)

switches = Table(
    "switches",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("name", String(96), primary_key=True),
    Column("is_on", Boolean, nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", String(32), nullable=False),
)

incidents = Table(
    "incidents",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("model", String(64), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("probe", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("message", Text, nullable=False),
    Column("opened_at", String(32), nullable=False),
    Column("closed_at", String(32)),
    Column("rollback_revision", Integer),
    Column("result", String(16), nullable=False, server_default="degraded"),
    Column("since", Integer),  # the last revision that was good; a rollback goes there
    Column("alert", Text),  # the episode of the alert that brought it up
    Column("subject", String(16), nullable=False, server_default="revision"),  # a Subject: what it accuses
    Column("subject_name", Text, nullable=False, server_default=""),  # of a feed, consumer or host
    UniqueConstraint("model", "revision", "probe"),
)

# Where a revision was published to: the link ``live``, or a consumer; one row a place, the newest word.
publications = Table(
    "publications",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("place", String(64), primary_key=True),
    Column("revision", Integer, nullable=False),
    Column("held", Integer),  # the newest revision that the place is known to have; NULL: none yet
    Column("attempts", Integer, nullable=False),
    Column("message", Text, nullable=False, default=""),
    Column("at", String(32), nullable=False),
)

published_folders = Table(
    "published_folders",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    Column("files", JSON, nullable=False),  # name -> the fields of a PublishedFile
)

# What the judge made of one probe of one revision; replaced when the probe is measured again.
judgements = Table(
    "judgements",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    Column("probe", String(64), primary_key=True),
    Column("result", String(16), nullable=False),
    Column("reference", Integer),  # the last good revision that was compared with
    Column("loss", Float),  # mean loss an item against the reference
    Column("p_value", Float),
    Column("drift", Float),  # cumulative sum against the first revisions
    Column("since", Integer),  # the last revision that was good
    Column("measurement", Integer, nullable=False),  # id of the probe result
    Column("message", Text, nullable=False),
    Column("judged_at", String(32), nullable=False),
)

# Looks at every blob that a kept revision of a model needs.
scrubs = Table(
    "scrubs",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("model", String(64), nullable=False, server_default=""),
    Column("blobs", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("unsound", JSON, nullable=False),  # blob -> what is wrong with it
    Column("seconds", Float, nullable=False),
    Column("at", String(32), nullable=False),
)

# Heartbeats of every process. The table keeps its name: an older worker that is still at work writes it too.
workers = Table(
    "workers",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("model", String(64), nullable=False),
    Column("state", String(32), nullable=False),
    Column("seen_at", String(32), nullable=False),
    Column("device", String(32), nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("gpu_memory_bytes", BigInteger, nullable=False, server_default="0"),
    Column("role", String(16), nullable=False, server_default="worker"),  # a ProcessRole
    Column("seconds", Float, nullable=False, server_default="20"),  # between two heartbeats
    Column("boot", String(64), nullable=False, server_default=""),  # whose monotonic clock ``renewed`` shows
    Column("renewed", Float, nullable=False, server_default="0"),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", String(32), nullable=False),
    Column("who", Text, nullable=False),
    Column("action", String(64), nullable=False),
    Column("target", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("details", JSON, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
)
