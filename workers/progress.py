"""Progress bars of long commands, on standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

Step = Callable[[str, int, int], None]
"""Called with the name of a stage, how much of it is done and how much there is (0: not known yet)."""


@contextmanager
def progress_bars(console: Console, *, transient: bool = False) -> Iterator[Step]:
    """Show a bar for each stage, which disappears at the end where it is ``transient``."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=transient) as bars:
        shown: dict[str, TaskID] = {}

        def step(stage: str, done: int, total: int) -> None:
            if stage not in shown:
                shown[stage] = bars.add_task(stage, total=None)
            bars.update(shown[stage], completed=done, total=total or None)

        yield step
