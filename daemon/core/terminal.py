"""The console on which commands print tables and text."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_PLAIN_WIDTH = 100_000  # columns of a pipe, so that nothing is cut or wrapped


def make_console() -> "Console":
    """A console on stdout, without colours and with a huge width unless stdout is a terminal."""
    from rich.console import Console  # late: the import takes a tenth of the time of a short command

    if sys.stdout.isatty():
        return Console()
    return Console(width=_PLAIN_WIDTH, no_color=True, force_terminal=False)
