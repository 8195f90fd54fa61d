"""Where commands print their answers."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_PLAIN_WIDTH = 100_000  # columns of a pipe: nothing is cut or wrapped there


def make_console() -> "Console":
    """Stdout, with colours and its own width only where it is a terminal."""
    from rich.console import Console  # late: it costs a tenth of a command that prints nothing with it

    if sys.stdout.isatty():
        return Console()
    return Console(width=_PLAIN_WIDTH, no_color=True, force_terminal=False)
