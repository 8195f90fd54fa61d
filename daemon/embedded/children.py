"""Child processes of the embedded set-up, restarted when they end and stopped with their descendants."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from daemon.core.log import get_logger

log = get_logger("errata.run")
_LONGEST_PAUSE = 30.0  # seconds between restarts: the cause may need time, an operator should not wait
_RECOVERED = 60.0  # seconds after which a child counts as working, so that its next restart is quick


class Child:
    """A process that is restarted until ``stop``."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log_file: Path | None
    ) -> None:
        self.name, self._command, self._environment, self._log_file = name, command, environment, log_file
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._pause = 1.0
        self._again_at = 0.0

    @property
    def pid(self) -> int | None:
        """The process id, or None while it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start the process in its own session, so that its descendants can be killed with it."""
        sink = self._log_file.open("ab") if self._log_file else None
        try:
            self._process = subprocess.Popen(
                self._command,
                env=dict(self._environment),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT if sink else None,
                start_new_session=True,
            )
        finally:
            if sink:
                sink.close()
        self._started = time.monotonic()
        log.info("started", child=self.name, pid=self._process.pid)

    def watch(self) -> None:
        """Restart the process if it has ended, after a pause that doubles with each early end."""
        if self._process is None or self._process.poll() is None:
            return
        now = time.monotonic()
        if self._again_at == 0.0:
            self._kill_group()  # a pool child may outlive its parent and keep a second model in memory
            self._pause = 1.0 if now - self._started > _RECOVERED else min(self._pause * 2, _LONGEST_PAUSE)
            self._again_at = now + self._pause
            log.warning(
                "ended unexpectedly", child=self.name, status=self._process.returncode, again_in=self._pause
            )
        elif now >= self._again_at:
            self._again_at = 0.0
            self.start()

    def stop(self, patience: float) -> None:
        """Send SIGTERM, wait at most ``patience`` seconds, then kill the process and its descendants."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                log.warning("killed after the time limit", child=self.name, seconds=patience)
        self._kill_group()
        self._process.wait()
        self._process = None

    def _kill_group(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
