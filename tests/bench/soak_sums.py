"""Checks after a soak of sums, single application, newest wins and the content of head."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from sqlalchemy import func, select

from daemon.core.config.settings import Config
from daemon.core.ledger.audit import first_broken_row
from daemon.core.ledger.chain import active_tenures
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import batches, corrections, feeds, quarantine, revisions, tenures
from daemon.core.names import BatchState, CorrectionState, RevisionKind
from daemon.upkeep.store import collect_garbage, scrub
from tests.toy import ANSWERS, WIDE, ToyEditor, prompt_of
from workers.revisions.recovery import rebuild
from workers.revisions.store import Store

MODEL = "default"
DONE = frozenset(CorrectionState) - {CorrectionState.PENDING, CorrectionState.QUEUED}


@dataclass
class Written:
    """The lines that were written to the feed."""

    lines: list[str] = field(default_factory=list)  # of different corrections
    garbage: int = 0
    repeated: int = 0

    def accepted(self) -> int:
        """Return the number of corrections that the ledger must have."""
        return len(self.lines)

    def total(self) -> int:
        """Return the number of lines."""
        return len(self.lines) + self.garbage + self.repeated


def checks(
    ledger: Ledger, config: Config, written: Written, seen: list[dict[str, int]]
) -> Iterator[tuple[str, bool]]:
    """Print the sums and each check, and yield the name of each check and whether it holds."""
    for name, holds, what in (
        *_sums(ledger, written), *_once(ledger), *_answers(ledger, config), *_bounds(ledger, config, seen),
    ):  # fmt: skip
        print(f"{'ok  ' if holds else 'FAIL'}  {name}: {what}", flush=True)
        yield name, holds


Check = tuple[str, bool, str]


def _sums(ledger: Ledger, written: Written) -> Iterator[Check]:
    with ledger.read() as connection:
        states = Counter(connection.execute(select(corrections.c.state)).scalars())
        read = int(connection.execute(select(feeds.c["items"])).scalar() or 0)
        refused = quarantine.c.correction_id.is_(None)
        garbage = connection.execute(select(func.count()).select_from(quarantine).where(refused)).scalar_one()
        waits = batches.c.state.in_((BatchState.OPEN, BatchState.SENT))
        left = connection.execute(select(func.count()).select_from(batches).where(waits)).scalar_one()
        number = connection.execute(select(func.max(revisions.c.number))).scalar_one()
    print(f"head {number}; lines read {read}")
    for state, count in sorted(states.items()):
        print(f"{count:8d}  {state}")
    print(f"{states.total():8d}  accepted in all")
    yield "every line was read once", read == written.total(), f"{read} of {written.total()}"
    yield "every correction is there", states.total() == len(written.lines), f"{states.total()}"
    yield "every other line is accounted for", garbage == written.garbage, f"{garbage} refused lines"
    yield "all came to an end", states.keys() <= DONE and left == 0, f"{left} batches left"


def _once(ledger: Ledger) -> Iterator[Check]:
    with ledger.read() as connection:
        chain = connection.execute(select(revisions).order_by(revisions.c.number)).mappings().all()
        spans = connection.execute(select(tenures)).mappings().all()
        rows = connection.execute(select(corrections)).mappings().all()
        active = active_tenures(connection, MODEL, chain[-1]["number"])
        broken = first_broken_row(connection)
    edits = {row["number"] for row in chain if row["kind"] == RevisionKind.EDIT}
    by = Counter(span["correction_id"] for span in spans if span["since"] in edits)
    twice = sum(count > 1 for count in by.values())
    yield "nothing was applied twice", twice == 0, f"{len(by)} corrections written by {len(edits)} edits"
    numbers = [row["number"] for row in chain]
    yield "the chain is whole", numbers == list(range(len(chain))), f"{len(chain)} revisions"
    applied = {row["id"] for row in rows if row["state"] == CorrectionState.APPLIED}
    held = {row["correction_id"] for row in active}
    yield "applied is what head holds", applied == held, f"{len(held)} facts"
    yield "the audit holds", broken is None, f"first broken row: {broken}"
    touched = {CorrectionState.REVERTED, CorrectionState.QUARANTINED}
    disturbed = {row["fact_id"] for row in rows if row["state"] in touched}
    newest: dict[str, str] = {}
    for row in rows:
        newest[row["fact_id"]] = max(newest.get(row["fact_id"], ""), row["order_key"])
    keys = {row["id"]: row["order_key"] for row in rows}
    agreeing = {row["fact_id"]: row["order_key"] for row in rows if row["state"] == CorrectionState.CONFIRMED}
    late = [
        row["fact_id"] for row in active
        if row["fact_id"] not in disturbed
        and max(keys[row["correction_id"]], agreeing.get(row["fact_id"], "")) != newest[row["fact_id"]]
    ]  # fmt: skip
    yield "newest won where nobody interfered", not late, f"{len(newest) - len(disturbed)} such facts"


def _answers(ledger: Ledger, config: Config) -> Iterator[Check]:
    editor, store = ToyEditor(WIDE), Store(config.store_path)
    rebuilt = rebuild(ledger, store, editor, MODEL, "soak", mend=False)
    drift = max((one if one is not None else 1.0) for one in rebuilt.drift.values())
    yield "errata rebuild reproduces head", rebuilt.agrees, f"largest drift {drift:.1e}"
    with ledger.read() as connection:
        rows = {row["id"]: row for row in connection.execute(select(corrections)).mappings()}
        active = active_tenures(connection, MODEL, rebuilt.revision)
    taught = {rows[row["correction_id"]]["subject"]: rows[row["correction_id"]]["object"] for row in active}
    wrong = []
    for subject in sorted({row["subject"] for row in rows.values()}):
        answer, wanted = editor.model.answer(prompt_of(subject)), taught.get(subject)
        if answer != wanted if wanted is not None else answer in ANSWERS:
            wrong.append(subject)
    yield "head answers what the ledger states", not wrong, f"{len(taught)} facts asked, wrong: {wrong}"


def _bounds(ledger: Ledger, config: Config, seen: list[dict[str, int]]) -> Iterator[Check]:
    unsound = scrub(ledger, config)
    yield "every needed blob is sound", not unsound, f"{len(unsound)} unsound"
    half = len(seen) // 2
    for name in ("files", "daemon_mib", "worker_mib"):
        early, late = (
            max((one.get(name, 0) for one in part), default=0) for part in (seen[:half], seen[half:])
        )
        yield f"{name} is bounded", late <= 1.25 * early + 20, f"at most {early}, then {late}"
    aged = config.model_copy(update={"store": config.store.model_copy(update={"grace_seconds": 0.0})})
    collect_garbage(ledger, aged)
    left = sum(1 for _ in config.store_path.glob("*/*.safetensors"))
    most = 4 * (config.store.keep_revisions + 2)
    with ledger.read() as connection:
        pairs = set(connection.execute(select(tenures.c.blob).where(tenures.c.until.is_(None))).scalars())
    yield "gc leaves what is kept", left <= most + len(pairs), f"{left} files"
