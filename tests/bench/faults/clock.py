"""Clocks of child processes that step when a bench says so, by a library that they preload."""

import shutil
import struct
import subprocess
import time
from pathlib import Path

SOURCE = Path(__file__).with_name("stepped_clock.c")
_PAGE = struct.Struct("=qq")


class SteppedClock:
    """The clock of one child process, which nobody else sees.

    The machine's own clock is never changed.
    """

    def __init__(self, file: Path, library: Path | None) -> None:
        self._file, self._library = file, library
        file.write_bytes(_PAGE.pack(0, 0))

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which the child must be started."""
        if self._library is None:
            return {}
        return {"LD_PRELOAD": str(self._library), "ERRATA_TEST_CLOCK": str(self._file)}

    def step(self, seconds: int) -> None:
        """Set the clock off by some seconds from now on, or right again by 0."""
        with self._file.open("r+b") as stream:  # in place: the child has mapped this very file
            stream.write(_PAGE.pack(seconds, int(time.time())))


def build_library(folder: Path) -> Path | None:
    """Compile the library, or return None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    library = folder / "stepped_clock.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return library if done.returncode == 0 else None
