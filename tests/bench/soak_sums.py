"""Checks after a soak of the ledger's sums, of the content of head, and of memory and files."""

from collections.abc import Iterator

from sqlalchemy import select

from daemon.core.config.settings import Config
from daemon.core.ledger.chain import active_tenures
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import corrections, tenures
from daemon.upkeep.store import collect_garbage, scrub
from tests.bench.ledger_checks import MODEL, Check, newest_won, once, sums
from tests.bench.stream import Written
from tests.toy import ANSWERS, WIDE, ToyEditor, prompt_of
from workers.revisions.recovery import rebuild
from workers.revisions.store import Store


def checks(
    ledger: Ledger, config: Config, written: Written, seen: list[dict[str, int]]
) -> Iterator[tuple[str, bool]]:
    """Print each check, and yield its name and whether it holds."""
    for check in (
        *sums(ledger, written), *once(ledger), *newest_won(ledger), *answers(ledger, config),
        *_bounds(ledger, config, seen),
    ):  # fmt: skip
        print(f"{'ok  ' if check.holds else 'FAIL'}  {check.name}: {check.what}", flush=True)
        yield check.name, check.holds


def answers(ledger: Ledger, config: Config) -> Iterator[Check]:
    """Head can be solved anew from its facts, and the toy then answers what the ledger states."""
    editor, store = ToyEditor(WIDE), Store(config.store_path)
    rebuilt = rebuild(ledger, store, editor, MODEL, "bench", mend=False)
    drift = max((one if one is not None else 1.0) for one in rebuilt.drift.values())
    yield Check("errata rebuild reproduces head", rebuilt.agrees, f"largest drift {drift:.1e}")
    with ledger.read() as connection:
        rows = {row["id"]: row for row in connection.execute(select(corrections)).mappings()}
        active = active_tenures(connection, MODEL, rebuilt.revision)
    taught = {rows[row["correction_id"]]["subject"]: rows[row["correction_id"]]["object"] for row in active}
    wrong = []
    for subject in sorted({row["subject"] for row in rows.values()}):
        answer, wanted = editor.model.answer(prompt_of(subject)), taught.get(subject)
        if answer != wanted if wanted is not None else answer in ANSWERS:
            wrong.append(subject)
    what = f"{len(taught)} facts asked, wrong: {wrong}"
    yield Check("head answers what the ledger states", not wrong, what)


def _bounds(ledger: Ledger, config: Config, seen: list[dict[str, int]]) -> Iterator[Check]:
    unsound = scrub(ledger, config)
    yield Check("every needed blob is sound", not unsound, f"{len(unsound)} unsound")
    half = len(seen) // 2
    for name in ("files", "daemon_mib", "worker_mib"):
        early, late = (
            max((one.get(name, 0) for one in part), default=0) for part in (seen[:half], seen[half:])
        )
        yield Check(f"{name} is bounded", late <= 1.25 * early + 20, f"at most {early}, then {late}")
    aged = config.model_copy(update={"store": config.store.model_copy(update={"grace_seconds": 0.0})})
    collect_garbage(ledger, aged)
    left = sum(1 for _ in config.store_path.glob("*/*.safetensors"))
    most = 4 * (config.store.keep_revisions + 2)
    with ledger.read() as connection:
        pairs = set(connection.execute(select(tenures.c.blob).where(tenures.c.until.is_(None))).scalars())
    yield Check("gc leaves what is kept", left <= most + len(pairs), f"{left} files")
