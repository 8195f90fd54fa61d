"""The results of a bench as JSON lines, a table, and curves as PNG."""

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from daemon.core.fsio import write_durably

_SHORT = {"perplexity": "ppl ratio", "seconds_per_fact": "s/fact", "units_per_fact": "units/fact"}
_LONG = {
    "n": "edits", "greedy": "greedy efficacy, all so far", "first_100": "greedy efficacy, first 100",
    "others": "greedy efficacy, untouched facts", "es": "ES, all so far", "ps": "PS, all so far",
    "ns": "neighborhood (NS)", "perplexity": "perplexity / base", "capacity": "facts / d_in",
}  # fmt: skip
_ROWS, _SETTINGS, _CURVES, _EARLIER = "rows.jsonl", "settings.json", "curves.png", "earlier"
_STATES = "state-*.safetensors"
_OWN = (_ROWS, _SETTINGS, _CURVES, _STATES)


class Report:
    """Rows of one bench, appended to ``folder``/rows.jsonl as they come.

    An interrupted run of the same ``settings`` is resumed after ``resumed`` rows. Others move to ``earlier``.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        self._path = folder / _ROWS
        self._settings = json.loads(json.dumps(settings, default=str))
        self._where = {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        if not fresh and self._is_unfinished():
            self.rows = _whole_lines(self._path)
        else:
            self._put_aside()
        write_durably(self._path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())
        self.resumed = len(self.rows)
        self._note(finished=False)

    def finish(self) -> None:
        """Note that all rows are there, so that the same command starts over."""
        self._note(finished=True)
        for state in self.folder.glob(_STATES):
            state.unlink()

    def has(self, **values: Any) -> bool:
        """Return whether there is a row with these values."""
        return any(all(row.get(name) == value for name, value in values.items()) for row in self.rows)

    def _is_unfinished(self) -> bool:
        """Return whether the folder holds an interrupted run of these settings."""
        try:
            noted = json.loads((self.folder / _SETTINGS).read_text(encoding="utf-8"))
            same = bool(noted["settings"] == self._settings)
            return same and not noted["finished"] and self._path.exists()
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _put_aside(self) -> None:
        """Move an earlier run's files into a folder of their own."""
        left = [path for pattern in _OWN for path in self.folder.glob(pattern)]
        if not left:
            return
        number = 1
        while (aside := self.folder / _EARLIER / str(number)).exists():
            number += 1
        aside.mkdir(parents=True)
        for path in left:
            path.rename(aside / path.name)

    def _note(self, *, finished: bool) -> None:
        noted = {"settings": self._settings, "finished": finished, **self._where}
        write_durably(self.folder / _SETTINGS, json.dumps(noted, indent=1).encode())

    def add(self, *parts: Any, **values: Any) -> dict[str, Any]:
        """Add one row of dataclasses, mappings and values."""
        row = dict(values)
        for part in parts:
            row |= asdict(part) if is_dataclass(part) and not isinstance(part, type) else dict(part)
        self.rows.append(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        return row

    def table(self, title: str, columns: Sequence[str]) -> Table:
        """Return the rows as a table of these columns."""
        table = Table(*(_SHORT.get(name, name) for name in columns), title=title)
        for row in self.rows:
            table.add_row(*(_shown(row.get(name)) for name in columns))
        return table

    def curves(self, x: str, names: Sequence[str], title: str) -> Path | None:
        """Draw ``names`` against ``x``, or return None without matplotlib (extra ``bench``)."""
        try:
            figures = import_module("matplotlib.figure")
            canvases = import_module("matplotlib.backends.backend_agg")
        except ImportError:
            return None
        drawn = [name for name in names if any(row.get(name) is not None for row in self.rows)]
        across = max(1, min(3, len(drawn)))
        down = max(1, -(-len(drawn) // across))
        figure = figures.Figure(figsize=(4.2 * across, 3.0 * down), layout="constrained")
        canvases.FigureCanvasAgg(figure)
        figure.suptitle(title)
        groups = list(dict.fromkeys(str(row.get("recipe", "")) for row in self.rows))
        for place, name in enumerate(drawn, start=1):
            axes = figure.add_subplot(down, across, place)
            for group in groups:
                of_group = [row for row in self.rows if str(row.get("recipe", "")) == group]
                points = [(row[x], row[name]) for row in of_group if row.get(name) is not None]
                axes.plot([a for a, _ in points], [b for _, b in points], marker=".", label=group)
            axes.set(xlabel=_LONG.get(x, x), title=_title(name))
            axes.grid(visible=True, alpha=0.3)
            if len(groups) > 1:
                axes.legend(fontsize="x-small")
        path = self.folder / _CURVES
        figure.savefig(path, dpi=110)
        return path


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file without a last one that was cut off."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _title(name: str) -> str:
    layer = name.removeprefix("norm_")
    return f"‖ΔW‖/‖W0‖ at layer {layer}" if layer != name else _LONG.get(name, name)


def _shown(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
