"""Processes of a test: who made whom, and who has ended."""

import time
from collections.abc import Callable
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has made, and those that they have made."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [one for child in map(int, found) for one in (child, *descendants(child))]


def has_ended(pid: int) -> bool:
    """Return whether a process is gone, or a zombie that nobody waits for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait(what: Callable[[], bool], seconds: float, why: str = "") -> None:
    """Wait until ``what`` holds, at most so long."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"not within {seconds} s {why}"
        time.sleep(0.05)
