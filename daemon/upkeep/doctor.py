"""Check an installation for the usual mistakes, and say how to mend each."""

import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import redis
from sqlalchemy import func, select

from daemon.core.broker import URL_FILE, ping, redis_url
from daemon.core.clock import from_text
from daemon.core.config.feeds import JsonlFeedConfig
from daemon.core.config.settings import Config
from daemon.core.errors import ErrataError
from daemon.core.findings import Finding
from daemon.core.ledger import audit
from daemon.core.ledger.database import (
    check_integrity,
    is_founded,
    newest_version,
    open_engine,
    schema_version,
)
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import audit as audit_table
from daemon.core.ledger.schema import corrections, revisions
from daemon.core.names import Role
from daemon.core.space import required_bytes
from daemon.upkeep.processes import examine_processes
from daemon.views import figures
from daemon.views.lists import publication_list

CHECKS = "errata.checks"  # entry points: functions from a configuration to findings
_SKEW = 5.0  # seconds that two clocks of one installation may differ
_WRITTEN = datetime(2026, 1, 1, tzinfo=UTC)  # this code is newer, so a clock before it is wrong


def examine(config: Config) -> list[Finding]:
    """Run every check. Nothing is created, migrated or changed."""
    findings = [_guarded("ledger", lambda: _ledger(config))]
    wanted = config.store.reserve_bytes
    if findings[0].ok:
        with _look(config) as ledger:
            with ledger.read() as connection:
                wanted = required_bytes(connection, config)
            findings += [
                _guarded("audit", lambda: _audit(ledger)),
                _guarded("revisions", lambda: _revisions(ledger, config)),
                *examine_processes(ledger, config),
                _guarded("published", lambda: _published(ledger, config)),
                _guarded("clock and ledger", lambda: _ledger_clock(ledger)),
            ]
    redis_found = _guarded("redis", lambda: _redis_answers(config))
    findings.append(redis_found)
    if redis_found.ok and _has_redis(config):
        findings += [
            _guarded("redis persistence", lambda: _redis_setting(config, "appendonly", "yes")),
            _guarded("redis eviction", lambda: _redis_setting(config, "maxmemory-policy", "noeviction")),
            _guarded("clock and redis", lambda: _redis_clock(config)),
        ]
    findings += [_disk(config, wanted), _model(config), _statistics(config)]
    findings += [_token("api", config.api.token_file, config.api.host)]
    lesser = {Role.READ: config.api.read_token_file, Role.SUBMIT: config.api.submit_token_file}
    findings += [_token(f"api {role}", file, config.api.host) for role, file in lesser.items() if file]
    findings += [_token("serve", config.serve.token_file, config.serve.host)]
    findings += [_feed(one.name, one.path) for one in config.feeds if isinstance(one, JsonlFeedConfig)]
    return findings + _foreign(config)


@contextmanager
def _look(config: Config) -> Iterator[Ledger]:
    """The ledger as it is, without migration."""
    ledger = Ledger(open_engine(config.ledger_url))
    try:
        yield ledger
    finally:
        ledger.close()


def _guarded(name: str, check: Callable[[], Finding]) -> Finding:
    """The finding of a check, or one that says why the check could not be made."""
    try:
        return check()
    except ErrataError as error:
        return Finding(name, False, error.message, error.hint)
    except redis.RedisError as error:
        return Finding(name, False, f"Redis refuses: {error}", "check the rights of its user")


def _ledger(config: Config) -> Finding:
    if not is_founded(config.ledger_url):
        return Finding("ledger", False, f"there is none in {config.data_dir}", "errata run creates it")
    with _look(config) as ledger:
        check_integrity(ledger.engine)
        version, newest = schema_version(ledger.engine), newest_version()
    if version == newest:
        return Finding("ledger", True, f"sound, schema {version}")
    if version is not None and version > newest:
        detail, fix = f"schema {version}, this Errata knows {newest}", "install the newer Errata"
    else:
        detail = f"schema {version}, this Errata needs {newest}"
        fix = "stop errata run and all workers, then run errata migrate"
    return Finding("ledger", False, detail, fix)


def _audit(ledger: Ledger) -> Finding:
    with ledger.read() as connection:
        broken = audit.first_broken_row(connection)
        rows = connection.execute(select(func.count()).select_from(audit_table)).scalar_one()
    if broken is None:
        return Finding("audit", True, f"{rows} rows, the chain holds")
    fix = "somebody changed the ledger by hand; compare with a backup"
    return Finding("audit", False, f"row {broken} does not follow from the one before", fix)


def _revisions(ledger: Ledger, config: Config) -> Finding:
    with ledger.read() as connection:
        head = figures.head_number(connection, config.model.name)
        live = figures.live_number(connection, config.model.name)
    if head is None:
        fix = "errata prepare founds revision 0"
        return Finding("revisions", False, f"model {config.model.name} has none", fix)
    return Finding("revisions", True, f"head {head}, live {live}")


def _ledger_clock(ledger: Ledger) -> Finding:
    now = ledger.clock.now()
    with ledger.read() as connection:
        newest = [
            connection.execute(select(func.max(column))).scalar()
            for column in (corrections.c.admitted_at, revisions.c.created_at, audit_table.c.at)
        ]
    ahead = max(((from_text(text) - now).total_seconds() for text in newest if text), default=0.0)
    fix = "set the clock right (chrony, systemd-timesyncd); the order of corrections depends on it"
    if now < _WRITTEN:
        return Finding("clock and ledger", False, f"the clock says {now:%Y-%m-%d}", fix)
    if ahead > _SKEW:
        detail = f"the ledger's newest row is {ahead:.0f} s in the future"
        return Finding("clock and ledger", False, detail, fix)
    return Finding("clock and ledger", True, "the ledger has no row that is dated ahead")


def _has_redis(config: Config) -> bool:
    """Whether a Redis is configured, or errata run has started a private one."""
    return config.redis_url is not None or (config.run_path / URL_FILE).is_file()


def _redis_answers(config: Config) -> Finding:
    if not _has_redis(config):
        return Finding("redis", True, "none runs; errata run starts a private one and edits resume")
    ping(config)
    return Finding("redis", True, "answers" if config.redis_url else "the private server answers")


@contextmanager
def _redis(config: Config) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(redis_url(config), socket_timeout=3, socket_connect_timeout=3)
    with client:
        yield client


def _redis_setting(config: Config, setting: str, wanted: str) -> Finding:
    name = "redis persistence" if setting == "appendonly" else "redis eviction"
    with _redis(config) as client:
        answer = cast(dict[Any, Any], client.config_get(setting))
    values = {_text(key): _text(value) for key, value in answer.items()}
    value = values.get(setting)
    if value == wanted:
        return Finding(name, True, f"{setting} {value}")
    return Finding(name, False, f"{setting} is {value}", f"set {setting} {wanted} in redis.conf")


def _redis_clock(config: Config) -> Finding:
    with _redis(config) as client:
        seconds, micros = client.time()
    skew = abs(datetime.now(UTC).timestamp() - seconds - micros / 1e6)
    ok, detail = skew <= _SKEW, f"this clock and that of Redis differ by {skew:.1f} s"
    fix = "" if ok else "set both clocks right (chrony, systemd-timesyncd)"
    return Finding("clock and redis", ok, detail, fix)


def _disk(config: Config, wanted: int) -> Finding:
    """Whether an edit and its publication have the space without which no batch is sent."""
    free = figures.free_bytes(config)
    detail = f"{free >> 20} MiB free, edits and their publication need {wanted >> 20} MiB"
    if free >= wanted:
        return Finding("disk", True, detail)
    return Finding("disk", False, detail, "free space, or lower store.reserve_bytes or store.keep_revisions")


def _model(config: Config) -> Finding:
    folder = config.model_path
    missing = [name for name in ("config.json", "*.safetensors") if not list(folder.glob(name))]
    if not missing:
        return Finding("model", True, str(folder))
    detail = f"{folder} has no {' and no '.join(missing)}"
    return Finding("model", False, detail, "errata prepare, or set model.path")


def _statistics(config: Config) -> Finding:
    folder = config.data_dir / "statistics"
    count = sum(1 for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    if count:
        return Finding("statistics", True, f"{count} files in {folder}")
    return Finding("statistics", False, f"none in {folder}", "errata prepare computes them once")


def _token(section: str, file: Path | None, host: str) -> Finding:
    check, fix = f"{section} token", "write a token into it: openssl rand -hex 32"
    if file is None:
        return Finding(check, True, f"none: only this machine is served, at {host}")
    try:
        empty, mode = not file.read_text(encoding="utf-8").strip(), stat.S_IMODE(file.stat().st_mode)
    except (OSError, UnicodeDecodeError) as error:
        return Finding(check, False, f"{file} cannot be read: {error}", fix)
    if empty:
        return Finding(check, False, f"{file} is empty", fix)
    if mode & 0o077:
        return Finding(check, False, f"{file} has mode {mode:o}", f"chmod 600 {file}")
    return Finding(check, True, str(file))


def _feed(name: str, path: Path) -> Finding:
    if path.is_file():
        return Finding(f"feed {name}", True, str(path))
    fix = "create it, or correct path in [[feeds]]"
    return Finding(f"feed {name}", False, f"there is no file {path}", fix)


def _published(ledger: Ledger, config: Config) -> Finding:
    """Whether every place has the live revision, and the errors of the consumers that have not."""
    with ledger.read() as connection:
        live = figures.live_number(connection, config.model.name)
        places = publication_list(connection, config.model.name)
    if not places:
        return Finding("published", True, "nothing yet; errata publish does it")
    failing = [row for row in places if row["message"]]
    behind = [row["place"] for row in places if row["held"] != live]
    if failing:
        told = "; ".join(f"{row['place']} after {row['attempts']} tries: {row['message']}" for row in failing)
        return Finding("published", False, told, "mend the server; errata publish tries again by itself")
    text = f"live is {live}" + (f"; errata run or publish will tell {', '.join(behind)}" if behind else "")
    return Finding("published", True, text)


def _foreign(config: Config) -> list[Finding]:
    """The checks of other packages, which need the model."""
    findings: list[Finding] = []
    for entry in metadata.entry_points(group=CHECKS):
        try:
            findings += entry.load()(config)
        except Exception as error:  # noqa: BLE001  # foreign code may raise anything; the doctor goes on
            findings.append(Finding(entry.name, False, f"its checks failed: {error!r}", "reinstall Errata"))
    return findings


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
