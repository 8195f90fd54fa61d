"""What a bench leaves behind: JSON lines, a table, and curves as PNG."""

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

_SHORT = {"perplexity": "ppl ratio", "seconds_per_fact": "s/fact", "units_per_fact": "units/fact"}


class Report:
    """Rows of one bench, appended to ``folder``/rows.jsonl as they come."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, resume: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._path = folder / "rows.jsonl"
        self.rows: list[dict[str, Any]] = []
        if resume and self._path.exists():
            self.rows = [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines()]
        else:
            self._path.write_text("", encoding="utf-8")
        where = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cores": os.cpu_count()}
        where |= {
            "machine": platform.machine(),
            "gpu": _gpu(),
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        (folder / "settings.json").write_text(json.dumps({**settings, **where}, indent=1), encoding="utf-8")

    def add(self, *parts: Any, **values: Any) -> dict[str, Any]:
        """One row of dataclasses and values."""
        row = dict(values)
        for part in parts:
            row |= asdict(part) if is_dataclass(part) and not isinstance(part, type) else dict(part)
        self.rows.append(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        return row

    def table(self, title: str, columns: Sequence[str]) -> Table:
        """The rows as a table of these columns."""
        table = Table(*(_SHORT.get(name, name) for name in columns), title=title)
        for row in self.rows:
            table.add_row(*(_shown(row.get(name)) for name in columns))
        return table

    def curves(self, x: str, names: Sequence[str], title: str) -> Path | None:
        """Draw ``names`` against ``x``; None where matplotlib is not installed (extra ``bench``)."""
        try:
            figures, canvases = (
                import_module("matplotlib.figure"),
                import_module("matplotlib.backends.backend_agg"),
            )
        except ImportError:
            return None
        drawn = [name for name in names if any(row.get(name) is not None for row in self.rows)]
        figure = figures.Figure(
            figsize=(4.2 * min(3, len(drawn)), 3.0 * -(-len(drawn) // 3)), layout="constrained"
        )
        canvases.FigureCanvasAgg(figure)
        figure.suptitle(title)
        for place, name in enumerate(drawn, start=1):
            axes = figure.add_subplot(-(-len(drawn) // 3), min(3, len(drawn)), place)
            groups = sorted({str(row.get("recipe", "")) for row in self.rows})
            for group in groups:
                points = [row for row in self.rows if str(row.get("recipe", "")) == group and name in row]
                axes.plot([row[x] for row in points], [row[name] for row in points], marker=".", label=group)
            axes.set(xlabel=x, title=_SHORT.get(name, name))
            axes.grid(visible=True, alpha=0.3)
            if len(groups) > 1:
                axes.legend(fontsize="x-small")
        path = self.folder / "curves.png"
        figure.savefig(path, dpi=110)
        return path


def _shown(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _gpu() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
