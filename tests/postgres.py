"""A private PostgreSQL cluster for tests, reachable only by a socket in its own folder."""

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

_FAST = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "listen_addresses=")


class NoPostgresError(Exception):
    """PostgreSQL cannot be started, for the reason in the message."""


@contextmanager
def server() -> Iterator[str]:
    """Yield the URL of a server, from ERRATA_TEST_POSTGRES or of a private cluster.

    Raises:
        NoPostgresError: neither is available.
    """
    if given := os.environ.get("ERRATA_TEST_POSTGRES"):
        yield given
        return
    tools = _tools()
    folder = Path(tempfile.mkdtemp(prefix="errata-pg-"))  # short: a socket's path has about 100 characters
    try:
        run_as = _unprivileged(folder)
        _call([*run_as, str(tools / "initdb"), "-D", f"{folder}/data", "-A", "trust", "-U", "errata", "-N"])
        options = " ".join(f"-c {option}" for option in (*_FAST, f"unix_socket_directories={folder}"))
        control = [*run_as, str(tools / "pg_ctl"), "-D", f"{folder}/data", "-w"]
        _call([*control, "-o", options, "-l", f"{folder}/log", "start"])
        try:
            yield f"postgresql+psycopg://errata@/postgres?host={folder}"
        finally:
            _call([*control, "-m", "immediate", "stop"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def database(server_url: str, template: str = "template1") -> Iterator[str]:
    """Yield the URL of a new database, a copy of ``template`` that is dropped at the end."""
    name = f"t{secrets.token_hex(6)}"
    engine = create_engine(server_url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
        yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
        with engine.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    finally:
        engine.dispose()


def _tools() -> Path:
    """Return the folder with initdb and pg_ctl of the newest version."""
    on_path = shutil.which("initdb")
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: float(p.parts[-3]))
    initdb = Path(on_path) if on_path else (versions[-1] if versions else None)
    if initdb is None:
        raise NoPostgresError("no initdb on PATH or under /usr/lib/postgresql: apt-get install postgresql")
    return initdb.resolve().parent


def _unprivileged(folder: Path) -> list[str]:
    """Return the prefix of a command that runs it without root's rights, which PostgreSQL refuses."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        raise NoPostgresError("root needs setpriv (util-linux) to run PostgreSQL as another user")
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        os.chown(folder, user.pw_uid, user.pw_gid)
        return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    raise NoPostgresError("neither postgres nor nobody exists to run PostgreSQL as")


def _call(command: list[str]) -> None:
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise NoPostgresError(f"{command[-1]} failed: {(done.stderr or done.stdout).strip()[-500:]}")
