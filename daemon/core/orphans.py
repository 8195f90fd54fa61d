"""Let processes end with their parent, also when it is killed: the kernel tells them.

As a script it becomes another program: ``python -I -S orphans.py PARENT SIGNAL LOCK COMMAND ...``. What a
process asks the kernel for stays in force across exec, but not for the processes that it forks.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_NO_LOCK = "-"


def end_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent ends, and end now if it has ended already.

    Without Linux nothing happens, and the process ends when it is told to. The parent's thread counts that
    made this process: it must be one that stays.
    """
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:  # it ended before the kernel knew
        os._exit(1)


def leashed(command: Sequence[str], number: int = signal.SIGKILL, lock: int | None = None) -> list[str]:
    """Return the command that runs another one, which gets a signal when this process ends.

    It writes its process id into the file of ``lock``, a descriptor that it must inherit.
    """
    held = _NO_LOCK if lock is None else str(lock)
    this = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(number)), held]
    return [*this, *map(str, command)]


def _become(parent: str, number: str, lock: str, *command: str) -> None:
    end_with_parent(int(parent), int(number))
    if lock != _NO_LOCK:
        os.pwrite(int(lock), f"{os.getpid()}\n".encode(), 0)
    os.execvp(command[0], list(command))  # noqa: S606  # no shell


if __name__ == "__main__":
    _become(*sys.argv[1:])
