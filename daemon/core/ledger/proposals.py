"""What a worker gives the ledger: the outcome of a batch and the measurements of a revision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from daemon.core.ledger.outcomes import Outcomes
from daemon.core.names import RevisionKind


@dataclass(frozen=True)
class ProbeRow:
    """One measurement of a revision, with the floor or ceiling that it was compared with."""

    probe: str
    version: int
    result: str
    score: float | None
    bound: float | None
    items: int
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)
    outcomes: Outcomes | None = None


@dataclass(frozen=True)
class Refusal:
    """A correction that a guard or probe refused, and why."""

    correction_id: str
    reason: str
    message: str


@dataclass(frozen=True)
class Written:
    """A correction in force from the new revision on.

    Without a row nothing was written: the fact is kept absent, or the model answers it without an edit.
    """

    correction_id: str
    row: int | None
    note: str = ""


@dataclass(frozen=True)
class Proposal:
    """The outcome of one batch, as the writer wants it committed."""

    model: str
    parent: int
    batch_id: str
    recipe: str
    tensors: Mapping[str, str]  # tensor name -> sha256 of its blob
    blob: str | None  # sha256 of the file of associations that Written.row points into
    written: Sequence[Written]
    refused: Sequence[Refusal] = ()
    probes: Sequence[ProbeRow] = ()
    stages: Mapping[str, float] = field(default_factory=dict)
    norms: Mapping[str, float] = field(default_factory=dict)
    kind: RevisionKind = RevisionKind.EDIT
