"""The lock that keeps two processes from running one installation."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from daemon.core.errors import UnavailableError
from daemon.core.fsio import try_lock


@contextmanager
def only_one(run_path: Path) -> Iterator[None]:
    """Hold the lock of the installation with this folder of run-time files, or raise UnavailableError."""
    run_path.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (run_path / "supervisor.lock").open("w") as stream:
        if not try_lock(stream.fileno()):
            raise UnavailableError(
                f"another errata run holds {stream.name}", hint="stop it, or use another data_dir"
            )
        yield
