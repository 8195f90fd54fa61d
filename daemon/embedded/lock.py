"""The lock that keeps two processes from running one installation."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from daemon.core.errors import UnavailableError


@contextmanager
def only_one(run_path: Path) -> Iterator[None]:
    """Hold the lock of the installation with this folder of run-time files, or raise UnavailableError."""
    run_path.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (run_path / "supervisor.lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UnavailableError(
                f"another errata run holds {stream.name}", hint="stop it, or use another data_dir"
            ) from error
        yield
