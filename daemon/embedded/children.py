"""Child processes of the embedded set-up, restarted when they end and ended with their supervisor.

The kernel kills a child whose supervisor was killed. Beyond that each child and its descendants hold the lock
of a file with the child's process id, so that a supervisor finds what an earlier one left, and ends it.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from daemon.core.errors import UnavailableError
from daemon.core.fsio import try_lock
from daemon.core.log import get_logger
from daemon.core.orphans import leashed

log = get_logger("errata.run")
_LONGEST_PAUSE = 30.0  # seconds between restarts: the cause may need time, an operator should not wait
_RECOVERED = 60.0  # seconds after which a child counts as working, so that its next restart is quick
_LEFTOVER_SECONDS = 5.0  # from SIGKILL to the end of a leftover, which has much memory to give back


class Child:
    """A process that is restarted until ``stop``."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        lock_file: Path,
        log_file: Path | None = None,
    ) -> None:
        self.name, self._command, self._environment = name, command, environment
        self._lock_file, self._log_file = lock_file, log_file
        self._process: subprocess.Popen[bytes] | None = None
        self._started, self._told = 0.0, False
        self._pause = 1.0
        self._again_at = 0.0

    @property
    def pid(self) -> int | None:
        """The process id, or None while it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start the process in its own session, so that its descendants can be killed with it.

        Ends what an earlier supervisor left of it. Raises UnavailableError if that cannot be ended.
        """
        sink = self._log_file.open("ab") if self._log_file else None
        lock = _take_lock(self._lock_file, self.name)
        try:
            self._process = subprocess.Popen(
                leashed(self._command, lock=lock),
                env=dict(self._environment),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT if sink else None,
                pass_fds=(lock,),
                start_new_session=True,
            )
        finally:
            os.close(lock)  # the child has it, and holds it as long as a descendant lives
            if sink:
                sink.close()
        self._started, self._told = time.monotonic(), False
        log.info("started", child=self.name, pid=self._process.pid)

    def watch(self) -> None:
        """Restart the process if it has ended, after a pause that doubles with each early end."""
        if self._process is None or self._process.poll() is None:
            return
        now = time.monotonic()
        if self._again_at == 0.0:
            self.kill()  # a pool child may outlive its parent and keep a second model in memory
            self._pause = 1.0 if now - self._started > _RECOVERED else min(self._pause * 2, _LONGEST_PAUSE)
            self._again_at = now + self._pause
            log.warning(
                "ended unexpectedly", child=self.name, status=self._process.returncode, again_in=self._pause
            )
        elif now >= self._again_at:
            self._again_at = 0.0
            self.start()

    @property
    def status(self) -> int | None:
        """The exit status, or None before the end."""
        return self._process.returncode if self._process else None

    def terminate(self) -> None:
        """Send SIGTERM, once: a second one would end it at once."""
        if self._process is not None and self._process.poll() is None and not self._told:
            self._process.send_signal(signal.SIGTERM)
            self._told = True

    def wait(self, seconds: float) -> bool:
        """Wait at most so long for the end of the process, and return whether it has ended."""
        if self._process is not None:
            try:
                self._process.wait(max(0.0, seconds))
            except subprocess.TimeoutExpired:
                return False
        return True

    def stop(self, deadline: float) -> None:
        """Wait until a moment of the monotonic clock for the end, then kill the process group."""
        if self._process is None:
            return
        if not self.wait(deadline - time.monotonic()):
            log.warning("killed after the time limit", child=self.name)
        self.kill()
        self._process.wait()
        self._process = None

    def kill(self) -> None:
        """Kill the process and its descendants."""
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)


def stop_all(children: Sequence[Child], deadline: float) -> None:
    """Stop children together, each within the same time limit."""
    for child in children:
        child.terminate()
    for child in children:
        child.stop(deadline)


def end_leftover(lock_file: Path, name: str) -> None:
    """End what an earlier supervisor left of a child, or raise UnavailableError."""
    os.close(_take_lock(lock_file, name))


def _take_lock(file: Path, name: str) -> int:
    """Take the lock of a child, and end a leftover that holds it."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + _LEFTOVER_SECONDS
    told = False
    while not try_lock(lock):
        with suppress(OSError, ValueError):
            leader = int(os.pread(lock, 32, 0))
            if not told:
                log.warning("left by an earlier errata run, and ended", child=name, pid=leader)
                told = True
            # a session keeps its leader's id from reuse while a member lives, and a member holds the lock
            os.killpg(leader, signal.SIGKILL)
        if time.monotonic() > deadline:
            os.close(lock)
            raise UnavailableError(f"an earlier {name} cannot be ended", hint=f"see who holds {file}: fuser")
        time.sleep(0.05)
    os.truncate(lock, 0)
    return lock
